"""Aggregates over tasks, against plain loops, scipy and what they hold."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from unirl_env.bench.statistics import aggregate
from unirl_env.bench.statistics.aggregates import STATISTICS, resampled
from unirl_env.errors import ConfigError, ShapeError
from unirl_env.statistics.studentised import bounds


def tasks(seed=0, tasks=4, seeds=8):
    rng = np.random.default_rng(seed)
    return {f"task {k}": (k / 4 + rng.normal(0, 0.3, seeds)).tolist() for k in range(tasks)}


def middle_half(scores):
    """The interquartile mean by going through the scores once, in fractions."""
    weighted = sorted((v, Fraction(1, len(scores) * len(seeds))) for seeds in scores.values() for v in seeds)
    total, at, quarter = 0.0, Fraction(0), Fraction(1, 4)
    for value, weight in weighted:
        inside = min(at + weight, 1 - quarter) - max(at, quarter)
        at += weight
        if inside > 0:
            total += value * float(inside)
    return 2 * total


def test_the_middle_half_is_scipys_trimmed_mean():
    scores = tasks()
    every = np.concatenate(list(scores.values()))
    assert aggregate(scores, "iqm").estimate == pytest.approx(stats.trim_mean(every, 0.25), abs=1e-12)


@pytest.mark.parametrize("counts", [(3,), (5,), (10, 7), (3, 4, 5), (10, 10, 10), (2, 30)])
def test_the_middle_half_of_any_numbers_of_seeds(counts):
    rng = np.random.default_rng(sum(counts))
    scores = {str(k): rng.normal(k, 2, n).tolist() for k, n in enumerate(counts)}
    assert aggregate(scores).estimate == pytest.approx(middle_half(scores), abs=1e-9)


def test_mean_and_median_are_of_the_means_of_tasks():
    scores = {"a": [1.0, 3.0], "b": [10.0, 20.0, 30.0], "c": [4.0, 4.0, 5.0, 7.0]}
    assert aggregate(scores, "mean").estimate == pytest.approx((2 + 20 + 5) / 3)
    assert aggregate(scores, "median").estimate == pytest.approx(5)
    assert aggregate(scores | {"d": [6.0, 8.0]}, "median").estimate == pytest.approx(6)


def welch(groups, weights, level=0.95):
    """A weighted sum of means with Satterthwaite's degrees of freedom, in plain loops, without skew."""
    variance, parts = 0.0, 0.0
    for seeds, weight in zip(groups, weights, strict=True):
        mean = math.fsum(seeds) / len(seeds)
        part = weight**2 * math.fsum((v - mean) ** 2 for v in seeds) / (len(seeds) - 1) / len(seeds)
        variance += part
        parts += part**2 / (len(seeds) - 1)
    return stats.t.ppf(0.5 + level / 2, variance**2 / parts) * math.sqrt(variance)


SYMMETRIC = {"a": [1.0, 2.0, 3.0, 4.0], "b": [0.0, 5.0, 10.0], "c": [7.0, 7.5, 8.0, 8.5, 9.0]}


def test_the_mean_has_the_interval_of_a_stratified_sum():
    found = aggregate(SYMMETRIC, "mean")
    half = welch(SYMMETRIC.values(), [1 / 3] * 3)
    assert (found.low, found.high) == pytest.approx((found.estimate - half, found.estimate + half), abs=1e-9)


def test_the_median_has_the_interval_of_the_tasks_in_the_middle():
    found = aggregate(SYMMETRIC, "median")
    half = welch([SYMMETRIC["b"]], [1.0])
    assert (found.low, found.high) == pytest.approx((5 - half, 5 + half), abs=1e-9)
    found = aggregate(SYMMETRIC | {"d": [6.0, 7.0, 8.0]}, "median")
    half = welch([SYMMETRIC["b"], [6.0, 7.0, 8.0]], [0.5, 0.5])
    assert (found.low, found.high) == pytest.approx((6 - half, 6 + half), abs=1e-9)


def test_the_middle_half_of_one_task_has_tukeys_interval():
    values = [-9.0, -3.5, -3.0, -1.0, -0.5, 0.5, 1.0, 3.0, 3.5, 9.0, 4.0, -4.0]
    found = aggregate({"a": values}, "iqm")
    held = stats.mstats.winsorize(np.array(values), (0.25, 0.25))
    half = stats.t.ppf(0.975, 5) * held.std(ddof=1) / 0.5 / math.sqrt(12)
    assert (found.low, found.high) == pytest.approx((-half, half), abs=1e-9)


def test_the_middle_half_sees_the_gap_between_humps():
    scores = {"a": [0.9, 0.91, 0.92, 0.9, 0.93, 0.88, 0.9, 0.94, 0.02, 0.01]}
    groups = [np.array(scores["a"])[:, None]]
    blind = float(bounds(STATISTICS["iqm"](groups)[1], 0.95)[0][0])
    found = aggregate(scores)
    assert blind > 0.85 and found.low < 0.8
    assert found.low == resampled(groups, 0.95)[0]


def test_what_is_resampled_has_the_quantiles_of_all_resamples():
    values, level = [0.1, 0.5, 0.6, 2.0], 0.5
    tail = stats.norm.cdf(-math.sqrt(4 / 3) * stats.t.ppf(0.75, 3))
    every = [middle_half({"a": list(drawn)}) for drawn in itertools.product(values, repeat=4)]
    low, high = resampled([np.array(values)[:, None]], level)
    near = 3 * math.sqrt(tail * (1 - tail) / 999)
    assert np.quantile(every, tail - near) - 1e-9 <= low <= np.quantile(every, tail + near) + 1e-9
    assert np.quantile(every, 1 - tail - near) - 1e-9 <= high <= np.quantile(every, 1 - tail + near) + 1e-9
    assert low < middle_half({"a": values}) < high


def test_results_do_not_depend_on_order_or_on_what_was_asked_before():
    scores = tasks(3)
    first = aggregate(scores)
    np.random.default_rng(0).normal(size=100)
    aggregate(tasks(4))
    turned = {name: scores[name] for name in reversed(scores)}
    assert aggregate(scores) == first == aggregate(turned)


def test_one_seed_in_a_task_is_shown_and_claims_nothing():
    for statistic in STATISTICS:
        found = aggregate({"a": [0.5], "b": [1.0, 2.0, 3.0]}, statistic)
        assert math.isfinite(found.estimate) and not found.known and found.coverage is None


def test_equal_scores_have_no_width():
    found = aggregate({"a": [0.5] * 4, "b": [0.25] * 3}, "mean")
    assert (found.estimate, found.low, found.high) == (0.375, 0.375, 0.375)


def test_mistakes_are_named():
    with pytest.raises(ShapeError, match="`scores` must have at least one task"):
        aggregate({})
    with pytest.raises(ShapeError, match=r"`scores\['a'\]` must be a list of numbers"):
        aggregate({"a": []})
    with pytest.raises(ConfigError, match=r"`scores\['a'\]` must be finite numbers, got nan"):
        aggregate({"a": [1.0, math.nan]})
    with pytest.raises(ConfigError, match="`statistic` must be one of iqm, median, mean, got 'mode'"):
        aggregate({"a": [1.0, 2.0]}, "mode")


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_ten_seeds_of_three_unequal_tasks_cover(statistic):
    rng = np.random.default_rng(0)
    groups = [k / 4 + (0.02 + 0.1 * k) * rng.normal(size=(10, 4000)) for k in range(3)]
    low, high = bounds(STATISTICS[statistic](groups)[1], 0.95)
    assert 0.935 <= ((low <= 0.25) & (high >= 0.25)).mean() <= 0.985
