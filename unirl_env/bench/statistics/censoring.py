"""What it costs to reach a threshold, where some runs end before they do.

A run that has not reached it by its limit is not a run that never will: it is known to cost more than the
limit, and is counted so (right-censored). The share of runs that are still on their way after a cost is
Kaplan and Meier's; bounds are those of the beta product, which hold with few runs and become Clopper and
Pearson's where nothing is censored. With fewer than six runs no median has a 95 % interval: its bounds are
0 and infinity.

Reference:
    Kaplan & Meier, J. Am. Statist. Assoc. 53 (1958), 457-481.
    Fay, Brittain & Proschan, Biostatistics 14 (2013), 723-736 (beta product, by moments).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unirl_env.errors import ConfigError, ShapeError
from unirl_env.statistics import Interval
from unirl_env.statistics.given import Array, numbers, proper_level
from unirl_env.statistics.interval import measured

METHOD = "beta product on Kaplan and Meier's curve"


@dataclass(frozen=True)
class Reached:
    """When runs reach a threshold.

    Attributes:
        median: The cost by which half of all runs reach it, in the units of the costs, with its interval; an
            upper bound of infinity is one that these runs do not give. None where half of them do not.
        share: The share that reach it by the largest cost at which a run did.
        least: The lower bound of the median, which is known where the median is not.
        costs: Costs at which runs reached it, ascending [k].
        shares: The share that reach it by each of these costs [k].
        n: Runs.
        censored: How many of them did not reach it.
    """

    median: Interval | None
    share: Interval
    least: float
    costs: tuple[float, ...]
    shares: tuple[float, ...]
    n: int
    censored: int


def reached(costs: Sequence[float | None], limits: Sequence[float] | Array, level: float = 0.95) -> Reached:
    """Kaplan and Meier's account of costs to a threshold.

    Args:
        costs: What each run took [n]: iterations, samples, seconds; None where it did not get there.
        limits: How far each run went [n], in the same units.
        level: How often an interval is to hold the truth.

    Raises:
        ShapeError: If there are no runs, or not one limit for each.
        ConfigError: If a cost is negative, not finite or above its limit, or the level is none.
    """
    ends = numbers(limits, "limits")
    proper_level(level)
    if len(costs) != len(ends):
        raise ShapeError(
            f"`limits` must have one number for each of the {len(costs)} costs, got {len(ends)}; try the "
            "cost at which each run ended."
        )
    for cost, limit in zip(costs, ends, strict=True):
        if cost is not None and not 0 <= cost <= limit:
            raise ConfigError(
                f"`costs` must lie between 0 and the limit of the run, {limit:g}, got {cost}; try None for a "
                "run that did not get there."
            )
    there = np.array([cost is not None for cost in costs])
    times = np.array(
        [limit if cost is None else cost for cost, limit in zip(costs, ends, strict=True)], float
    )
    return _account(survival(times, there, level), level, len(ends), int((~there).sum()))


@dataclass(frozen=True)
class Curve:
    """Kaplan and Meier's curve; entry 0 is the start, each later one a cost at which runs got there or ended.

    Attributes:
        times: The cost [k]; where runs got there and others ended at the same, it has an entry for each.
        got: Whether runs got there at that entry [k].
        left: The share still on its way [k].
        low: Its lower bound [k].
        high: Its upper bound [k].
    """

    times: Array
    got: Array
    left: Array
    low: Array
    high: Array


def survival(times: Array, there: Array, level: float) -> Curve:
    """The curve of runs that got there or ended at `times` [n]; `there` [n] tells which."""
    count = len(times)
    # At one cost those that got there come first: who ended at it had not got there.
    entries = sorted({(time, not got) for time, got in zip(times.tolist(), there.tolist(), strict=True)})
    at, ended = np.array([time for time, _ in entries]), np.array([late for _, late in entries])
    risk = np.array([(times >= time).sum() for time in at], float)
    got = np.where(ended, 0, [((times == time) & there).sum() for time in at])
    after = np.array(
        [(times > time).sum() + (0 if late else ((times == time) & ~there).sum()) for time, late in entries],
        float,
    )
    alpha, beta = np.append(1.0, risk - got + 1), np.append(0.0, got)
    # The upper bound looks at the last run that got there, the lower one at the next that will.
    nexts = np.append(float(count), after)
    first = np.cumprod(alpha / (alpha + beta))
    second = np.cumprod(alpha * (alpha + 1) / ((alpha + beta) * (alpha + beta + 1)))
    high = _beta_quantile(first, second, 0.5 + level / 2, certain=1.0)
    first, second = first * nexts / (nexts + 1), second * nexts / (nexts + 2)
    low = _beta_quantile(first, second, 0.5 - level / 2, certain=0.0)
    left = np.append(1.0, np.cumprod(1 - got / risk))
    return Curve(np.append(0.0, at), np.append(False, got > 0), left, low, high)


def _beta_quantile(first: Array, second: Array, share: float, certain: float) -> Array:
    """Quantile of the beta distribution with these two moments; `certain` where there is no spread."""
    from scipy.special import betaincinv

    spread = second - first**2
    sure = (spread <= 1e-15) | (first <= 0)
    safe = np.where(sure, 1.0, spread)
    scale = np.where(sure, 2.0, first * (1 - first) / safe - 1)
    middle = np.where(sure, 0.5, first)
    return np.where(sure, certain, betaincinv(middle * scale, (1 - middle) * scale, share))


def median_of(curve: Curve) -> tuple[float, float, float]:
    """The cost after which at most half are on their way, and its bounds; infinity where there is none."""
    estimate, least, most = (
        float(curve.times[found[0]]) if (found := np.flatnonzero(half)).size else math.inf
        for half in (curve.left <= 0.5 + 1e-12, curve.low <= 0.5, curve.high < 0.5)
    )
    return estimate, least, most


def _account(curve: Curve, level: float, count: int, censored: int) -> Reached:
    estimate, least, most = median_of(curve)
    last = np.flatnonzero(curve.got)[-1] if curve.got.any() else 0
    got, low, high = (float(1 - part[last]) for part in (curve.left, curve.high, curve.low))
    median = Interval(estimate, least, most, level, METHOD, **measured("cost", level))
    return Reached(
        median=median if math.isfinite(estimate) else None,
        share=Interval(got, low, high, level, METHOD, **measured("share", level)),
        least=least,
        costs=tuple(curve.times[curve.got].tolist()),
        shares=tuple((1 - curve.left[curve.got]).tolist()),
        n=count,
        censored=censored,
    )
