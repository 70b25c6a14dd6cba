"""An iteration whose scores come while the next lot is played, against one that waits for them, in one run.

The reward takes as long as the rollout itself and leaves the processor alone, as a service on another machine
does: it sleeps for each sample, by a time that is measured first. In theory, with L lots, an iteration of
rollout R, scoring R and update U takes `R (1 + 1/L) + U` instead of `2 R + U`. The first row has an update of
one denoising step in twenty, the second the embedded recipe's half of the steps in two optimizer steps, which
nothing can overlap with on-policy.

    python benchmarks/reward_overlap.py [--repeats 5] [--lots 16]
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time

import ray
import torch
from timing import interleaved, report

from unirl_env.agents import FlowDPPOConfig
from unirl_env.types import Scores

PROMPTS, GROUP = 8, 12
UPDATES = {
    "one step in twenty": {"num_steps": 20, "steps": {"kind": "random", "count": 1}, "num_minibatches": 1},
    "half of eight steps": {"num_steps": 8, "steps": {"kind": "fraction"}, "num_minibatches": 2},
}


class Elsewhere:
    """Brightness, judged by somebody who takes `seconds` for each sample."""

    pointwise = True
    needs = ("image",)

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __call__(self, samples, prompts):
        """Score pictures `[3, H, W]`."""
        time.sleep(self.seconds * len(samples))
        return Scores(torch.stack([sample.image.mean() for sample in samples]))


def agent_of(seconds, lots, *, overlap, num_steps, **training):
    """An agent whose scorer takes `seconds` per sample."""
    return (
        FlowDPPOConfig()
        .environment(
            "unirl/TinySD3-T2I-v0",
            env_config={"num_steps": num_steps, "scorer": Elsewhere(seconds), "overlap": overlap},
        )
        .training(
            num_prompts=PROMPTS,
            group_size=GROUP,
            rollout_batch_size=PROMPTS * GROUP // lots,
            lr=1e-6,
            self_check=False,
            **training,
        )
        .build_algo()
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--lots", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    for name, settings in UPDATES.items():
        free = agent_of(0.0, given.lots, overlap=False, **settings)
        rollouts = []
        for _ in range(3):
            free.train()
            rollouts.append(free.iteration_metrics["seconds/rollout"])
        free.stop()
        seconds = statistics.median(rollouts) / (PROMPTS * GROUP)
        agents = {
            word: agent_of(seconds, given.lots, overlap=overlap, **settings)
            for word, overlap in (("waits", False), ("overlaps", True))
        }
        times = interleaved({word: agent.train for word, agent in agents.items()}, given.repeats)
        curves = [agent.iteration_metrics["reward"] for agent in agents.values()]
        rollout, update = seconds * PROMPTS * GROUP, agents["waits"].iteration_metrics["seconds/update"]
        report(
            "reward_overlap",
            {
                "update": name,
                "lots": given.lots,
                "rollout_seconds": rollout,
                "update_seconds": update,
                "waits_seconds": times["waits"],
                "overlaps_seconds": times["overlaps"],
                "ratio": times["overlaps"] / times["waits"],
                "ratio_in_theory": (rollout * (1 + 1 / given.lots) + update) / (2 * rollout + update),
                "same_reward": curves[0] == curves[1],
            },
        )
        for agent in agents.values():
            agent.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
