"""Curves against what they cost: means over seeds on a common grid, and the cost of getting somewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from unirl_env.bench.page import numbers
from unirl_env.bench.page.numbers import Estimate
from unirl_env.bench.page.reading import Bench, Row

AXES = {
    "iteration": "iterations",
    "episodes": "episodes",
    "function_evaluations": "function evaluations",
    "tokens": "tokens",
    "seconds": "seconds",
}
"""What a run spends."""
SINGULAR = {
    "iteration": "iteration",
    "episodes": "episode",
    "function_evaluations": "evaluation",
    "tokens": "token",
    "seconds": "second",
}
POINTS = 40
"""Of a curve at most: a page must stay one that can be sent."""


@dataclass(frozen=True)
class Band:
    """A mean over seeds along a cost axis.

    Attributes:
        x: Costs.
        means: The estimates there.
    """

    x: Sequence[float] = field(default_factory=list)
    means: Sequence[Estimate] = field(default_factory=list)


def axes(bench: Bench) -> list[str]:
    """The cost axes that any run has."""
    return [axis for axis in AXES if any(_points(row, axis) for row in bench.rows)]


def band(bench: Bench, task: str, agent: str, axis: str) -> Band:
    """The mean score of an agent's seeds along a cost axis.

    It reaches from where the last run has begun to where the first finished one ends. A run that failed
    counts as the untrained policy from where it stopped, as it does in the tables; where none finished, the
    band ends with the first.
    """
    base = bench.tasks[task].base
    played = [(row, _points(row, axis)) for row in bench.cell(task, agent)]
    known = [(row, points) for row, points in played if points]
    finished = [points for row, points in known if row.done]
    if finished and base is None:
        known = [(row, points) for row, points in known if row.done]
    if not known:
        return Band()
    start = max(points[0][0] for _, points in known)
    end = min(points[-1][0] for points in finished or [points for _, points in known])
    grid = _grid([points for _, points in known], start, end)
    if not grid:
        return Band()
    values = [[_at(points, x, None if row.done else base) for x in grid] for row, points in known]
    # Within the grid all are known, but for rounding at its ends.
    kept = [i for i in range(len(grid)) if all(run[i] is not None for run in values)]
    runs = [[value for i in kept if (value := run[i]) is not None] for run in values]
    return Band([grid[i] for i in kept], numbers.band(runs) if kept else [])


def time_to(bench: Bench, task: str, agent: str, axis: str) -> tuple[float, Estimate | None] | None:
    """The share of an agent's runs that reach the task's threshold, and the median cost of it.

    Returns:
        None where the task has no threshold, or no run says what is base and reference.
    """
    about = bench.tasks[task]
    if about.threshold is None or about.base is None or about.reference is None:
        return None
    if about.reference <= about.base:
        return None
    wanted = about.base + about.threshold * (about.reference - about.base)
    ends = [points[-1][0] for row in bench.rows if row.task == task and (points := _points(row, axis))]
    costs: list[float | None] = []
    limits: list[float] = []
    for row in bench.cell(task, agent):
        points = _points(row, axis)
        if not points and row.done:
            return None
        got = next((x for x, y in points if y >= wanted), None)
        # A run that failed would not have got there later; nor does it count as one that was there.
        costs.append(got if row.done else None)
        limits.append(points[-1][0] if row.done else max(ends, default=0.0))
    return numbers.reached(costs, limits) if ends else None


def spent(row: Row, axis: str) -> float | None:
    """What a run has spent altogether."""
    points = _points(row, axis)
    return row.metrics.get(axis, points[-1][0] if points else None)


def _points(row: Row, axis: str) -> list[tuple[float, float]]:
    """Cost and score where both are known, by cost."""
    x, y = row.curve.get(axis, ()), row.curve.get("score", ())
    found = [(a, b) for a, b in zip(x, y, strict=False) if a is not None and b is not None and a >= 0]
    return sorted(found, key=lambda point: point[0])


def _grid(runs: Sequence[Sequence[tuple[float, float]]], start: float, end: float) -> list[float]:
    """Places for a curve: those of the runs where they are few, else evenly spread."""
    if end < start:
        return []
    places = sorted({x for points in runs for x, _ in points if start <= x <= end} | {start, end})
    if len(places) <= POINTS:
        return places
    return [start + (end - start) * i / (POINTS - 1) for i in range(POINTS)]


def _at(points: Sequence[tuple[float, float]], x: float, after: float | None) -> float | None:
    """A run's score at a cost, on the straight line between two evaluations; `after` where it had ended."""
    if x > points[-1][0] and not math.isclose(x, points[-1][0]):
        return after
    if x <= points[0][0]:
        return points[0][1] if math.isclose(x, points[0][0]) else None
    right = next((i for i, (at, _) in enumerate(points) if at >= x), len(points) - 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return y1 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
