"""Two learners on two GPUs by NCCL against one, on the embedded Stable Diffusion 3: the same curve."""

from __future__ import annotations

import torch
from measure import arguments, report

from unirl_env.agents import FlowDPPOConfig


def curve(learners: int) -> tuple[list[float], float]:
    """The rewards of three iterations, and the seconds of the last update."""
    config = (
        FlowDPPOConfig()
        .environment("unirl/TinySD3-T2I-v0", env_config={"device": "cuda"})
        .learners(num_learners=learners, num_gpus_per_learner=1)
        .training(num_prompts=8, group_size=12, lr=1e-3, kl_threshold=2.6e-3)
    )
    agent = config.build_algo()
    rewards = []
    for _ in range(3):
        agent.train()
        rewards.append(agent.iteration_metrics["reward"])
    seconds = agent.iteration_metrics["seconds/update"]
    agent.stop()
    return rewards, seconds


def main() -> None:
    args = arguments(__doc__)
    gpus = torch.cuda.device_count() if args.device == "cuda" else 0
    if gpus < 2:
        report({"skipped": f"needs two GPUs, found {gpus}"})
        return
    one, two = curve(0), curve(2)
    apart = max(abs(a - b) for a, b in zip(one[0], two[0], strict=True))
    report({"rewards": one[0], "largest_difference": apart, "update_seconds": [one[1], two[1]]})


if __name__ == "__main__":
    main()
