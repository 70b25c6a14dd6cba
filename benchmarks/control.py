"""An agent against itself: how often does a bench call two names of one agent different?

From a bench of one agent under many seeds, 200 benches are drawn: twice ten of its seeds, none in both, in
the order of the draw, as if two agents had played them. Each is judged as a bench judges two agents: by the
difference over tasks at 95 %, and the differences of single tasks after Holm's correction over them.

    python -m unirl_env.bench suite=quick agents=[grpo] seeds=60 name=control
    python benchmarks/control.py runs/bench/control [--draws 200] [--seeds 10]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from scipy import stats

from unirl_env.bench.statistics import holm, paired, paired_over_tasks
from unirl_env.bench.stored import read_bench, scores

LEVEL = 0.95


def drawn(known: dict[str, dict[int, float]], draws: int, size: int) -> tuple[list[bool], list[bool]]:
    """Of each bench, whether the mean over tasks, and whether any single task, was called different."""
    random = np.random.default_rng(0)
    seeds = sorted(set.intersection(*(set(own) for own in known.values())))
    if len(seeds) < 2 * size:
        raise SystemExit(f"The bench must have at least {2 * size} seeds on all tasks, got {len(seeds)}.")
    together, single = [], []
    for _ in range(draws):
        chosen = random.permutation(seeds)[: 2 * size]
        first, second = (
            {task: [own[seed] for seed in part] for task, own in known.items()}
            for part in (chosen[:size], chosen[size:])
        )
        together.append(paired_over_tasks(first, second, LEVEL).difference.excludes(0.0))
        p_values = [paired(first[task], second[task], LEVEL).p_value for task in known]
        single.append(min(holm(p_values)) < 1 - LEVEL)
    return together, single


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bench", type=Path)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/control.json"))
    args = parser.parse_args()
    _, rows = read_bench(args.bench)
    found = {}
    for agent, known in scores([row for row in rows if not row.get("baseline")]).items():
        for name, called in zip(
            ("mean over tasks", "any task, by Holm"), drawn(known, args.draws, args.seeds), strict=True
        ):
            share = sum(called) / len(called)
            low, high = stats.binomtest(sum(called), len(called)).proportion_ci()
            found[f"{agent}, {name}"] = {
                "different": share,
                "low": round(low, 4),
                "high": round(high, 4),
                "benches": len(called),
                "seeds of each": args.seeds,
                "seeds drawn from": len(next(iter(known.values()))),
                "tasks": len(known),
            }
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
