"""A bench's folder as data: what was run, its rows, and scores by agent, task and seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unirl_env.errors import ConfigError

Row = Mapping[str, Any]
Scores = dict[str, dict[str, dict[int, float]]]
"""By agent, task and seed."""


def read_bench(folder: Path) -> tuple[dict[str, Any], list[Row]]:
    """What stands in `bench.json`, and the rows of `results.jsonl`.

    Raises:
        ConfigError: If the folder is no bench's.
    """
    try:
        bench = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
        lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
        return dict(bench), [json.loads(line) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"A bench's folder must hold `bench.json` and `results.jsonl`, got {folder} ({error}); try "
            "runs/bench/quick."
        ) from error


def scores(rows: Sequence[Row], key: str = "normalised") -> Scores:
    """The scores of rows that have one.

    Args:
        rows: Of one bench.
        key: `normalised`, in which a run that failed counts as 0, or `score`.
    """
    found: Scores = {}
    for row in rows:
        if row.get(key) is not None:
            found.setdefault(row["agent"], {}).setdefault(row["task"], {})[row["seed"]] = row[key]
    return found


def on_common_seeds(*agents: Mapping[str, Mapping[int, float]]) -> list[dict[str, list[float]]]:
    """Task to one number for each seed, the same tasks and seeds for all of them.

    Args:
        *agents: Task to seed to score, of each.
    """
    tasks = sorted(set.intersection(*(set(agent) for agent in agents)))
    seeds = [set(agent[task]) for agent in agents for task in tasks]
    common = sorted(set.intersection(*seeds)) if seeds else []
    if not common:
        return [{} for _ in agents]
    return [{task: [agent[task][seed] for seed in common] for task in tasks} for agent in agents]


def tasks_alone(first: Scores, second: Scores) -> tuple[list[str], list[str]]:
    """Tasks that one of two benches has alone, of each; none where they have no task in common at all."""
    every = [dict.fromkeys(task for tasks in side.values() for task in tasks) for side in (first, second)]
    if not every[0].keys() & every[1].keys():
        return [], []
    return [t for t in every[0] if t not in every[1]], [t for t in every[1] if t not in every[0]]
