"""FlowDPPO as an RLlib algorithm: configure, build, train, save, load.

The same run with a report, curves and checkpoints to resume from is
`python -m unirl_env.train --config-name=diffusion/tiny_sd3`. Left out here: evaluation on held-out prompts.

    python examples/04_flow_dppo_on_rllib.py
    python examples/04_flow_dppo_on_rllib.py --num-env-runners 2 --num-learners 2
"""

import argparse
import tempfile

import ray

from unirl_env.agents import FlowDPPOConfig


def main(
    env_id="unirl/TinySD3-T2I-v0",
    iterations=8,
    num_prompts=8,
    group_size=12,
    num_steps=8,
    num_env_runners=0,
    num_learners=0,
    **settings,
):
    config = (
        FlowDPPOConfig()
        .environment(env_id, env_config={"num_steps": num_steps})
        .env_runners(num_env_runners=num_env_runners)
        .learners(num_learners=num_learners)
        .training(
            num_prompts=num_prompts,
            group_size=group_size,
            **{
                "lr": 1e-3,
                "kl_threshold_nats": 0.66,  # of a whole latent: the same trust region at any size
                "steps": {"kind": "fraction", "fraction": (0.0, 0.5)},
                "policy": {"lora_rank": 16, "eta": 1.0},
                **settings,
            },
        )
        .debugging(seed=0)
    )
    agent = config.build_algo()
    curve = []
    for iteration in range(iterations):
        agent.train()
        metrics = agent.iteration_metrics
        curve.append(metrics["reward"])
        print(
            f"iteration {iteration:3}  reward {metrics['reward']:.3f}  KL {metrics['kl']:.1e}"
            f"  masked {metrics['masked_fraction']:.2f}  {metrics['episodes_per_second']:.1f} samples/s"
        )

    # Fixed noise, no exploration: what the trained model draws, against the untrained one.
    prompts = agent.source.take(0, num_prompts, seed=1)
    trained = agent.rollout_eval(prompts, samples_per_prompt=4, seed=1).rewards.mean()
    base = agent.rollout_eval(prompts, samples_per_prompt=4, seed=1, base=True).rewards.mean()
    print(f"without exploration: {base:.3f} before, {trained:.3f} after")

    with tempfile.TemporaryDirectory() as folder:
        agent.save_to_path(folder)
        agent.restore_from_path(folder)
    agent.stop()
    return curve


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env-id", default="unirl/TinySD3-T2I-v0")
    for name in ("iterations", "num-prompts", "group-size", "num-env-runners", "num-learners"):
        parser.add_argument(f"--{name}", type=int, default=argparse.SUPPRESS)
    main(**vars(parser.parse_args()))
    ray.shutdown()
