"""One number for many tasks: interquartile mean, median and mean, with stratified intervals.

The tasks are given, their seeds are drawn: an interval says what other seeds of the same tasks would give,
and nothing of other tasks. Each statistic is, to first order, a sum of means over the seeds of single
tasks, and its interval is that of such a sum (`unirl_env.statistics.studentised`), with Satterthwaite's
degrees of freedom.

- `mean`: the mean over tasks of the mean over seeds.
- `median`: the median over tasks of the mean over seeds; its error is that of the task or two in the middle.
- `iqm`: the mean of the middle half of all scores of all tasks, each task of the same weight. Scores on the
  border of the half count in part, so that it is defined for any number of seeds; with a number of scores
  that four divides it is `scipy.stats.trim_mean(scores, 0.25)`. Its error is that of the scores held to the
  borders (Winsorised), over one half. Where the border lies in a gap, as between runs that failed and runs
  that did not, that error is blind, and resampling is not: the interval is never narrower than the
  percentiles of a stratified bootstrap, expanded for few seeds, which alone are too narrow.

Reference:
    Agarwal et al., Deep RL at the edge of the statistical precipice, NeurIPS 2021 (the statistics).
    Tukey & McLaughlin, Sankhya A 25 (1963), 331-352 (the trimmed mean's interval).
    Hesterberg, What teachers should know about the bootstrap, Am. Statist. 69 (2015) (expanded percentiles).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unirl_env.errors import ConfigError
from unirl_env.statistics import Interval
from unirl_env.statistics.given import Array, by_task, proper_level
from unirl_env.statistics.interval import measured
from unirl_env.statistics.studentised import Moments, bounds, combined, moments_of_mean

RESAMPLES = 999
METHOD = "Student's t over stratified seeds, widened for skew (Hall)"
METHODS = {"mean": METHOD, "median": METHOD, "iqm": f"{METHOD}, and at least a stratified bootstrap's"}
NOTHING = "a task of one seed: no interval"


def aggregate(
    scores: Mapping[str, Sequence[float] | Array], statistic: str = "iqm", level: float = 0.95
) -> Interval:
    """A statistic of all tasks with its interval, over seeds as strata.

    Where a task has one seed only, the bounds are NaN: the number can be shown, and claims nothing.

    Args:
        scores: Task to the scores of its seeds; tasks may have different numbers of them.
        statistic: `iqm`, `median` or `mean`.
        level: How often the interval is to hold the truth.

    Raises:
        ShapeError: If there is no task, or one without seeds.
        ConfigError: If a score is not finite, or statistic or level are none.
    """
    groups = [seeds[:, None] for _, seeds in sorted(by_task(scores, "scores").items())]
    proper_level(level)
    if statistic not in STATISTICS:
        raise ConfigError(
            f"`statistic` must be one of {', '.join(STATISTICS)}, got {statistic!r}; try 'iqm'."
        )
    estimate, known = STATISTICS[statistic](groups)
    if known is None:
        return Interval(float(estimate[0]), math.nan, math.nan, level, NOTHING)
    low, high = (float(bound[0]) for bound in bounds(known, level))
    if statistic == "iqm":
        least, most = resampled(groups, level)
        low, high = min(low, least), max(high, most)
    return Interval(
        float(estimate[0]), low, high, level, METHODS[statistic], **measured(f"aggregate/{statistic}", level)
    )


def mean(groups: Sequence[Array]) -> tuple[Array, Moments | None]:
    """The mean over tasks [r] and its moments; `groups` are the seeds [n, r] of each task, r of a kind."""
    estimate = np.mean([seeds.mean(0) for seeds in groups], axis=0)
    if min(map(len, groups)) < 2:
        return estimate, None
    return estimate, combined([moments_of_mean(seeds) for seeds in groups], [1 / len(groups)] * len(groups))


def median(groups: Sequence[Array]) -> tuple[Array, Moments | None]:
    """The median over tasks of the mean over seeds [r], and its moments."""
    means = np.array([seeds.mean(0) for seeds in groups])
    estimate = np.median(means, axis=0)
    if min(map(len, groups)) < 2:
        return estimate, None
    order = np.argsort(means, axis=0, kind="stable")
    weights = np.zeros_like(means)
    for middle in ((len(means) - 1) // 2, len(means) // 2):
        np.put_along_axis(weights, order[middle : middle + 1], 1.0, axis=0)
    return estimate, combined([moments_of_mean(seeds) for seeds in groups], weights / weights.sum(0))


def interquartile_mean(groups: Sequence[Array]) -> tuple[Array, Moments | None]:
    """The mean of the middle half of all scores [r], and its moments."""
    estimate, least, most = _middle(groups)
    if min(map(len, groups)) < 2:
        return estimate, None
    parts = []
    for seeds in groups:
        held = moments_of_mean(np.clip(seeds, least, most) / 0.5)
        inside = ((seeds >= least) & (seeds <= most)).sum(0)
        parts.append(Moments(held.estimate, held.variance, held.third, np.maximum(inside - 1.0, 1.0)))
    known = combined(parts, [1 / len(groups)] * len(groups))
    return estimate, Moments(estimate, known.variance, known.third, known.freedom)


def resampled(groups: Sequence[Array], level: float) -> tuple[float, float]:
    """Percentiles of the interquartile mean of seeds drawn again within tasks [n, 1], by fixed draws."""
    from scipy.special import ndtr, stdtrit

    rng = np.random.default_rng(0)
    drawn = [seeds[rng.integers(len(seeds), size=(len(seeds), RESAMPLES)), 0] for seeds in groups]
    # What is resampled varies by (n - 1) / n too little, and by a normal quantile in the place of Student's.
    freedom = sum(len(seeds) - 1 for seeds in groups)
    shrunk = math.sqrt(1 + len(groups) / freedom)
    tail = float(ndtr(-shrunk * stdtrit(freedom, 0.5 + level / 2)))
    low, high = np.quantile(_middle(drawn)[0], [tail, 1 - tail])
    return float(low), float(high)


def _middle(groups: Sequence[Array]) -> tuple[Array, Array, Array]:
    """Mean of the middle half, and the least and largest score [r] that belong to it."""
    scores = np.concatenate(list(groups))
    each = np.concatenate([np.full(len(seeds), 1 / (len(groups) * len(seeds))) for seeds in groups])
    if len(set(map(len, groups))) == 1:
        # One weight for all: ten times as fast, and this is what resampling asks for.
        ranked, weight = np.sort(scores, axis=0), each[:, None]
    else:
        order = np.argsort(scores, axis=0, kind="stable")
        ranked, weight = np.take_along_axis(scores, order, axis=0), each[order]
    until = np.cumsum(weight, axis=0)
    share = np.minimum(until, 0.75) - np.maximum(until - weight, 0.25)
    # What rounding leaves of a score beyond the border is none of it.
    share = np.where(share > 1e-9, share, 0.0)
    inside = share > 0
    ends = inside.argmax(0), len(scores) - 1 - inside[::-1].argmax(0)
    columns = np.arange(scores.shape[1])
    estimate = (share * ranked).sum(0) / share.sum(0)
    return estimate, ranked[ends[0], columns], ranked[ends[1], columns]


STATISTICS: dict[str, Any] = {"iqm": interquartile_mean, "median": median, "mean": mean}
"""Name to the function that gives the estimate and its moments."""
