"""What a start costs: processor time until a first environment and a first iteration, and who takes it.

A fresh interpreter makes `unirl/TinySD3-T2I-v0`, and another one plays and trains an iteration on the
Gaussian mixture, then builds the same once more. Imports are counted by package, each with what it executes
itself (`-X importtime`), so that a package is not charged with what it asks others for.

    python benchmarks/start.py
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections import Counter

from timing import report

MAKE = """
import gymnasium as gym, unirl_env
env = gym.make("unirl/TinySD3-T2I-v0")
env.reset(seed=0)
"""
TRAIN = """
import json, time
import ray
ray.init(include_dashboard=False, log_to_driver=False)
begin = time.process_time()
from unirl_env.agents import GRPOConfig
lap = [begin, time.process_time()]
for _ in range(2):
    agent = GRPOConfig().environment("unirl/GaussianMixture-v0").training(
        num_prompts=2, group_size=8, policy={"lora_rank": None}).build_algo()
    agent.train()
    agent.stop()
    lap.append(time.process_time())
print("laps", json.dumps([b - a for a, b in zip(lap, lap[1:])]))
"""
SHOWN = 9


def started(program: str) -> dict[str, object]:
    """Processor seconds of a fresh interpreter that runs `program`, and of its imports by package."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    packages: Counter[str] = Counter()
    for line in ran.stderr.splitlines():
        if line.startswith("import time:") and "|" in line and "cumulative" not in line:
            own, _, name = line.removeprefix("import time:").split("|")
            parts = name.strip().split(".")
            packages[".".join(parts[: 2 if parts[:2] == ["torch", "_dynamo"] else 1])] += int(own)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found: dict[str, object] = {
        "processor_s": spent,
        "imports_s": sum(packages.values()) / 1e6,
        "by_package_s": {name: own / 1e6 for name, own in packages.most_common(SHOWN)},
        "of this library_s": packages["unirl_env"] / 1e6,
    }
    for line in ran.stdout.splitlines():
        if line.startswith("laps"):
            names = ("importing agents_s", "first run_s", "second run_s")
            found |= dict(zip(names, json.loads(line.removeprefix("laps")), strict=True))
    return found


def main() -> None:
    report("start/gym.make", started(MAKE))
    report("start/iteration", started(TRAIN))


if __name__ == "__main__":
    main()
