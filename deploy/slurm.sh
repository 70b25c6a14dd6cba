#!/usr/bin/env bash
# A run on several nodes of Slurm, of eight GPUs each: sbatch deploy/slurm.sh --config-name=diffusion/sd3 rollout=eight_gpus
# Every node needs the same environment and the same paths; runs are written below the folder of submission.
#SBATCH --job-name=unirl_env
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
export PATH="$PWD/.venv/bin:$PATH"  # `ray symmetric-run` calls `ray` by its name

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address="$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}'):6379"

# Ray starts on every node; the command runs on the first one, and Ray ends with it. What was killed or
# requeued goes on where it stopped.
srun --kill-on-bad-exit=1 \
    ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" -- \
    python -m unirl_env.train "$@" resume=auto logging.progress=false rollout.cluster_wait=600
