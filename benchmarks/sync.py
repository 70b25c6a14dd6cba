"""What a weight sync costs: bytes and time, adapters only against all weights, to one remote runner.

python benchmarks/sync.py [--repeats 20]
"""

from __future__ import annotations

import argparse
import logging
import statistics

import ray
from timing import report

from unirl_env.agents import GRPOConfig


def measure(lora_rank: int | None, repeats: int) -> tuple[int, float]:
    """Bytes, and median seconds, of publishing one version."""
    agent = (
        GRPOConfig()
        .environment("unirl/TinySD3-T2I-v0", env_config={"num_steps": 2})
        .env_runners(num_env_runners=1)
        .training(num_prompts=2, group_size=2, num_minibatches=1, policy={"lora_rank": lora_rank})
        .build_algo()
    )
    syncs = [agent.sync.publish(version) for version in range(1, repeats + 1)]
    agent.stop()
    return syncs[-1].size, statistics.median(sync.seconds for sync in syncs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    adapters, adapters_seconds = measure(16, args.repeats)
    weights, weights_seconds = measure(None, args.repeats)
    report(
        "sync",
        {
            "adapters_bytes": adapters,
            "adapters_ms": 1e3 * adapters_seconds,
            "all_weights_bytes": weights,
            "all_weights_ms": 1e3 * weights_seconds,
        },
    )


if __name__ == "__main__":
    main()
