"""Results that ship: what every agent reached on the suites, so that a new one is compared at once."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unirl_env.bench.suite import Suite

BASELINES = Path(__file__).parent / "baselines"
Row = dict[str, Any]


def stored(suite: str) -> tuple[dict[str, Any], list[Row]] | None:
    """The bench and the rows that ship for a suite; None where none do."""
    path = BASELINES / f"{suite}.jsonl.gz"
    if not path.is_file():
        return None
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        bench, *rows = map(json.loads, stream)
    return bench, rows


def baseline_rows(suite: Suite, rows: Sequence[Row]) -> list[Row]:
    """Those of agents that were not run, on tasks that are the very same; each says `baseline`.

    Args:
        suite: The suite that was run.
        rows: What was run.
    """
    found = stored(suite.name)
    if found is None:
        return []
    same = _same(suite, found[0])
    run = {row["agent"] for row in rows}
    return [{**row, "baseline": True} for row in found[1] if row["task"] in same and row["agent"] not in run]


def without_results(suite: Suite) -> list[str]:
    """Tasks that have no results which ship, of a suite of which some do.

    They are new, or another task than the one of that name whose results ship.
    """
    found = stored(suite.name)
    return [] if found is None else [name for name in suite.tasks if name not in _same(suite, found[0])]


def _same(suite: Suite, bench: dict[str, Any]) -> set[str]:
    """The tasks of a suite that are to the letter those whose results ship."""
    mine = suite.described()
    if bench["suite"].get("settings") != mine["settings"]:
        return set()
    return {name for name, task in bench["suite"]["tasks"].items() if mine["tasks"].get(name) == task}


def stored_refusals(suite: str) -> dict[str, dict[str, str]]:
    """By task and label, why an agent with results that ship has none there."""
    found = stored(suite)
    return dict(found[0].get("refused") or {}) if found else {}


def every_stored() -> list[Row]:
    """The rows of all suites that ship with results."""
    found: list[Row] = []
    for path in sorted(BASELINES.glob("*.jsonl.gz")):
        found += (stored(path.name.removesuffix(".jsonl.gz")) or ({}, []))[1]
    return found


def one_more(values: Sequence[float], level: float) -> tuple[float, float]:
    """Where one more run lies among runs of a kind: `mean +- t s sqrt(1 + 1/n)`, exact for normal values.

    Args:
        values: Of n runs, at least 2.
        level: How often it lies inside.
    """
    from scipy import stats

    n = len(values)
    mean = sum(values) / n
    std = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    reach = float(stats.t.ppf(0.5 + level / 2, n - 1)) * std * math.sqrt(1 + 1 / n)
    return mean - reach, mean + reach


def store(bench: dict[str, Any], rows: Sequence[Row], path: Path) -> None:
    """Write results as they ship: the bench first, then its rows without what no comparison needs."""
    lines = [bench, *({k: v for k, v in row.items() if k not in ("folder", "words")} for row in rows)]
    with path.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as stream:
        for line in lines:
            stream.write((json.dumps(_rounded(line)) + "\n").encode())


def _rounded(value: Any) -> Any:
    """Numbers to seven digits, which is what they are good for."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value
