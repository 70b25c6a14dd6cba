#!/usr/bin/env bash
# Everything that only a GPU shows, in at most 13 minutes: CUDA tests, precision, speed, memory, torch.compile.
#
#     benchmarks/gpu.sh [benchmarks/results/gpu.json]
#
# PYTHON names the interpreter; without it, that of .venv is taken where there is one. Every part runs in a
# process of its own with a time limit; one that fails is written down with its error, and the others go on.
# `SIZE=tiny DEVICE=cpu benchmarks/gpu.sh gpu_try.json` tries the script itself on a machine without a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH="$PWD:$PWD/benchmarks/gpu${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" benchmarks/gpu/suite.py --device "${DEVICE:-cuda}" --size "${SIZE:-published}" \
    --table "${1:-benchmarks/results/gpu.json}"
