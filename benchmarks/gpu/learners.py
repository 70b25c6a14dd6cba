"""Two learners on two GPUs by NCCL against one, on the embedded Stable Diffusion 3: the same curve.

All weights are trained; the two hold copies of them, and then half of each (`learner.parallel=sharded`).
"""

from __future__ import annotations

from typing import Any

import torch
from measure import arguments, report

from unirl_env.agents import FlowDPPOConfig


def curve(learners: int, parallel: str = "replicated") -> dict[str, Any]:
    """The rewards of three iterations, the seconds of the last update, and the most that tensors took."""
    config = (
        FlowDPPOConfig()
        .environment("unirl/TinySD3-T2I-v0", env_config={"device": "cuda", "rows_per_forward": None})
        .learners(num_learners=learners, num_gpus_per_learner=1)
        .training(
            num_prompts=8,
            group_size=12,
            lr=3e-4,
            kl_threshold=2.6e-3,
            policy={"lora_rank": None},
            learner={"parallel": parallel},
        )
    )
    agent = config.build_algo()
    rewards = []
    for _ in range(3):
        agent.train()
        rewards.append(agent.iteration_metrics["reward"])
    peaks = agent.learner_group.foreach_learner(lambda _: torch.cuda.max_memory_allocated() / 2**20)
    found = {
        "rewards": rewards,
        "update_seconds": agent.iteration_metrics["seconds/update"],
        "memory_mib": [peak.get() for peak in peaks],
    }
    agent.stop()
    return found


def main() -> None:
    args = arguments(__doc__)
    gpus = torch.cuda.device_count() if args.device == "cuda" else 0
    if gpus < 2:
        report({"skipped": f"needs two GPUs, found {gpus}"})
        return
    found = {"one": curve(0), "replicated": curve(2), "sharded": curve(2, "sharded")}
    apart = {
        name: max(abs(a - b) for a, b in zip(found["one"]["rewards"], each["rewards"], strict=True))
        for name, each in found.items()
        if name != "one"
    }
    report({**found, "largest_difference": apart})


if __name__ == "__main__":
    main()
