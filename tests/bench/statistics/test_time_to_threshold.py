"""Costs to a threshold, against plain loops, scipy's curve and the exact bounds of order statistics."""

import math

import numpy as np
import pytest
from scipy import stats

from unirl_env.bench.statistics import reached
from unirl_env.errors import ConfigError, ShapeError

COSTS = [5.0, 3.0, None, 7.0, 3.0, 2.0, 9.0, None, 6.0, None]
LIMITS = [12.0, 12.0, 4.0, 12.0, 12.0, 12.0, 12.0, 7.0, 12.0, 12.0]


def by_loop(costs, limits):
    """Kaplan and Meier's product, one cost after another."""
    curve, left = [], 1.0
    for cost in sorted({c for c in costs if c is not None}):
        at_risk = sum((limit if c is None else c) >= cost for c, limit in zip(costs, limits, strict=True))
        left *= 1 - sum(c == cost for c in costs) / at_risk
        curve.append((cost, 1 - left))
    return curve


def test_the_curve_is_kaplan_and_meiers():
    found = reached(COSTS, LIMITS)
    costs, shares = zip(*by_loop(COSTS, LIMITS), strict=True)
    assert found.costs == costs and found.shares == pytest.approx(shares, abs=1e-12)
    seen = [limit if cost is None else cost for cost, limit in zip(COSTS, LIMITS, strict=True)]
    there = np.array([cost is not None for cost in COSTS])
    plain = stats.ecdf(stats.CensoredData(np.array(seen)[there], right=np.array(seen)[~there])).cdf
    assert found.shares == pytest.approx([float(plain.evaluate(cost)) for cost in found.costs], abs=1e-12)
    assert (found.n, found.censored) == (10, 3)
    assert found.median.estimate == 6.0
    assert found.share.estimate == pytest.approx(found.shares[-1])


@pytest.mark.parametrize("count", [6, 7, 10, 15, 30])
def test_where_all_arrive_the_median_lies_between_order_statistics(count):
    costs = np.random.default_rng(count).permutation(np.arange(1.0, count + 1)).tolist()
    # The k-th from each end: as many as a fair coin leaves out with 2.5 % on each side.
    k = int(stats.binom.ppf(0.025, count, 0.5))
    found = reached(costs, [100.0] * count).median
    assert (found.low, found.high) == (float(k), float(count + 1 - k))
    assert stats.binom.cdf(k - 1, count, 0.5) <= 0.025 < stats.binom.cdf(k, count, 0.5)


@pytest.mark.parametrize("arrived", [0, 1, 4, 9, 10])
def test_the_share_by_a_common_limit_has_exact_bounds(arrived):
    costs = [float(k + 1) for k in range(arrived)] + [None] * (10 - arrived)
    found = reached(costs, [20.0] * 10)
    known = stats.binomtest(arrived, 10).proportion_ci(0.95, "exact")
    assert found.share.estimate == pytest.approx(arrived / 10)
    assert (found.share.low, found.share.high) == pytest.approx((known.low, known.high), abs=1e-9)


def test_who_does_not_arrive_took_longer_than_the_limit():
    found = reached([1.0, 2.0, None, None, None, None, None, None], [50.0] * 8)
    assert found.median is None and found.least == 1.0
    found = reached([None] * 8, [50.0] * 8)
    assert found.median is None and found.least == 50.0 and found.share.estimate == 0.0
    found = reached([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, None, None], [50.0] * 8)
    assert found.median.estimate == 4.0 and found.median.low == 1.0 and math.isinf(found.median.high)
    assert found.median.row()["high"] is None


def test_early_ends_widen_the_bounds():
    whole = reached([float(k) for k in range(1, 13)], [20.0] * 12).median
    some = [None if k in (2, 5) else float(k) for k in range(1, 13)]
    cut = reached(some, [float(k) if k in (2, 5) else 20.0 for k in range(1, 13)]).median
    assert whole.low == 3.0 and cut.low <= 3.0 and cut.high > whole.high - 1


def test_few_runs_have_no_bounds():
    for count in (1, 3, 5):
        found = reached([float(k + 1) for k in range(count)], [9.0] * count).median
        assert found.low == 0.0 and math.isinf(found.high) and math.isfinite(found.estimate)


def test_mistakes_are_named():
    with pytest.raises(ShapeError, match="`limits` must be a list of numbers"):
        reached([], [])
    with pytest.raises(ShapeError, match="`limits` must have one number for each of the 2 costs, got 1"):
        reached([1.0, None], [3.0])
    for wrong in (4.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="`costs` must lie between 0 and the limit of the run, 3, got"):
            reached([wrong], [3.0])


def test_the_median_is_held_with_censoring():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        times, ends = np.exp(rng.normal(size=12)), 0.7 + 4 * rng.random(12)
        found = reached([t if t <= e else None for t, e in zip(times, ends, strict=True)], ends)
        high = math.inf if found.median is None else found.median.high
        hits += found.least <= 1.0 <= high
    assert hits >= 375
