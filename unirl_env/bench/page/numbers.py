"""What the page asks of the statistics, with nothing claimed where there is too little to say anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unirl_env.bench import statistics

LEVEL = 0.95
PERCENT = "95 %"
"""The level in words."""
STATISTICS = {"iqm": "IQM", "mean": "mean", "median": "median"}
"""Of several tasks, the one that ranks first."""
ENOUGH = 0.93
"""Measured coverage of a nominal 95 % from which an interval needs no remark."""


@dataclass(frozen=True)
class Estimate:
    """A number and how well it is known.

    Attributes:
        value: The estimate.
        low: The lower bound; None where there are too few numbers for one.
        high: The upper bound.
        count: Runs that it comes from.
        level: Nominal coverage.
        method: How the interval was made.
        coverage: Measured share of intervals of this kind that hold the truth, at about as many seeds.
        rare: The same where a run in ten fails, or the scores are skewed.
    """

    value: float
    low: float | None = None
    high: float | None = None
    count: int = 0
    level: float = LEVEL
    method: str = ""
    coverage: float | None = None
    rare: float | None = None

    @property
    def side(self) -> int:
        """1 above zero, -1 below, 0 where zero lies inside or there are no bounds."""
        if self.low is None or self.high is None:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


@dataclass(frozen=True)
class Pair:
    """Two agents on the same seeds.

    Attributes:
        difference: First minus second, with the interval of this comparison alone.
        p_value: Two-sided, of this comparison alone.
        count: Common seeds.
        adjusted: The p-value by Holm's method among all that were asked together.
        corrected: The difference with the interval of the level that Holm's method leaves to it.
        side: 1 where the first is above, -1 where it is below, 0 where nothing can be said.
    """

    difference: Estimate
    p_value: float
    count: int
    adjusted: float = 1.0
    corrected: Estimate | None = None
    side: int = 0


def mean(values: Sequence[float], level: float = LEVEL) -> Estimate | None:
    """The mean over seeds; without bounds for one value, None for none."""
    if not values:
        return None
    if len(values) < 2:
        return Estimate(float(values[0]), count=1, level=level)
    return estimate(statistics.mean_interval(list(values), level=level), len(values))


def band(runs: Sequence[Sequence[float]]) -> list[Estimate]:
    """Means over runs of one length, place by place; without bounds for one run."""
    if not runs:
        return []
    centre, low, high = statistics.mean_band([list(run) for run in runs], level=LEVEL)
    bounds = zip(centre.tolist(), low.tolist(), high.tolist(), strict=True)
    if len(runs) < 2:
        return [Estimate(value, count=1) for value, _, _ in bounds]
    return [Estimate(value, _finite(under), _finite(over), len(runs)) for value, under, over in bounds]


def pooled(scores: Mapping[str, Sequence[float]], statistic: str) -> Estimate | None:
    """A statistic over tasks; without bounds where a task has one seed only."""
    known = {task: list(values) for task, values in scores.items() if len(values)}
    if not known:
        return None
    count = sum(map(len, known.values()))
    found = estimate(statistics.aggregate(known, statistic=statistic, level=LEVEL), count, _fewest(known))
    return found if _fewest(known) > 1 else Estimate(found.value, count=count)


def improvement(x: Mapping[str, Sequence[float]], y: Mapping[str, Sequence[float]]) -> Estimate | None:
    """The probability that a run of the first scores above one of the second, mean over tasks."""
    tasks = [task for task in x if len(x[task]) and len(y.get(task, ()))]
    if not tasks:
        return None
    first, second = {t: list(x[t]) for t in tasks}, {t: list(y[t]) for t in tasks}
    few = min(_fewest(first), _fewest(second))
    found = estimate(statistics.probability_of_improvement(first, second, level=LEVEL), few, few)
    return found if few > 1 else Estimate(found.value, count=few)


def profile(
    scores: Mapping[str, Sequence[float]], thresholds: Sequence[float]
) -> tuple[list[float], list[float], list[float]] | None:
    """The share of runs above each threshold, with bounds; None without runs."""
    known = {task: list(values) for task, values in scores.items() if len(values)}
    if not known:
        return None
    share, low, high = statistics.performance_profile(known, list(thresholds))
    return [float(v) for v in share], [float(v) for v in low], [float(v) for v in high]


def reached(costs: Sequence[float | None], limits: Sequence[float]) -> tuple[float, Estimate | None] | None:
    """The share of runs that got there, and the median cost by Kaplan and Meier; None without runs."""
    if not costs:
        return None
    share = sum(cost is not None for cost in costs) / len(costs)
    if not share:
        return 0.0, None
    median = statistics.reached(list(costs), list(limits)).median
    if median is None or not math.isfinite(median.estimate):
        return share, None
    found = estimate(median, len(costs))
    # The runs may leave the upper bound open; with too few of them, the lower one says nothing, either.
    if math.isinf(median.high) and median.low > 0:
        found = replace(found, low=float(median.low), high=math.inf)
    return share, found


def compared(
    samples: Mapping[Any, tuple[Mapping[str, Sequence[float]], Mapping[str, Sequence[float]]]],
) -> dict[Any, Pair]:
    """Paired differences that are asked together, corrected by Holm's method.

    Args:
        samples: Two agents each: task to scores, of the same seeds in the same order.

    Returns:
        A pair for each question that has two common seeds at least. Something is said of one only where the
        corrected p-value is below 0.05 and the corrected interval excludes zero.
    """
    asked = {key: xy for key, xy in samples.items() if xy[0] and _fewest(xy[0]) > 1}
    together = statistics.paired_together(asked, LEVEL)
    pairs = {}
    for key, (x, y) in asked.items():
        alone, corrected = _paired(x, y, LEVEL), estimate(together[key].difference, _fewest(x))
        adjusted = together[key].p_value
        adjusted = 1.0 if math.isnan(adjusted) else float(adjusted)
        proven = adjusted < 1 - LEVEL and alone.difference.side == corrected.side
        side = corrected.side if proven else 0
        pairs[key] = Pair(alone.difference, alone.p_value, alone.count, adjusted, corrected, side)
    return pairs


def _paired(x: Mapping[str, Sequence[float]], y: Mapping[str, Sequence[float]], level: float) -> Pair:
    if len(x) == 1:
        (first,), (second,) = x.values(), y.values()
        found = statistics.paired(list(first), list(second), level=level)
    else:
        found = statistics.paired_over_tasks(x, y, level=level)
    count = _fewest(x)
    p_value = float(found.p_value)
    return Pair(estimate(found.difference, count), 1.0 if math.isnan(p_value) else p_value, count)


def estimate(interval: Any, count: int, seeds: int | None = None) -> Estimate:
    """An interval of `unirl_env.statistics` as what tables and drawings show.

    Args:
        interval: The interval; bounds that are not finite count as none.
        count: Runs that it comes from.
        seeds: Of the cell that has the fewest, by which its coverage is looked up; None is `count`.
    """
    low, high = _finite(interval.low), _finite(interval.high)
    bounded = low is not None and high is not None
    return Estimate(
        float(interval.estimate),
        low if bounded else None,
        high if bounded else None,
        count,
        float(interval.level),
        str(interval.method),
        _coverage(interval.coverage, seeds or count) if bounded else None,
        _coverage(getattr(interval, "rare", None), seeds or count) if bounded else None,
    )


def _coverage(measured: Mapping[str, float] | None, seeds: int) -> float | None:
    """Of what was measured, what belongs to as many seeds, or to the next smaller number."""
    known = sorted((int(count), float(share)) for count, share in (measured or {}).items())
    below = [share for count, share in known if count <= seeds]
    return below[-1] if below else known[0][1] if known else None


def _fewest(scores: Mapping[str, Sequence[float]]) -> int:
    return min(map(len, scores.values()))


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
