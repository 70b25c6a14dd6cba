"""The interval of a mean, against plain formulas and by how often it covers."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from unirl_env.errors import ConfigError, ShapeError
from unirl_env.statistics import Interval, mean_band, mean_interval
from unirl_env.statistics.studentised import bounds, combined, moments_of_mean, p_value

SKEWED = [0.1, 0.15, 0.2, 0.22, 0.3, 0.35, 0.9, 2.4]


def by_hand(values, level):
    """Hall's interval and Student's, each by search over the truth instead of by inversion."""
    n = len(values)
    mean = math.fsum(values) / n
    spread = math.fsum((v - mean) ** 2 for v in values)
    deviation = math.sqrt(spread / (n - 1))
    skew = (math.fsum((v - mean) ** 3 for v in values) / n) / (spread / n) ** 1.5 if n >= 5 else 0.0
    quantile = stats.t.ppf(0.5 + level / 2, n - 1)

    def hall(truth):
        t = (mean - truth) / deviation
        moved = t + skew * t**2 / 3 + skew**2 * t**3 / 27 + skew / (6 * n)
        return math.sqrt(n) * moved

    far = 60 * deviation
    low = optimize.brentq(lambda truth: hall(truth) - quantile, mean - far, mean + far, xtol=1e-13)
    high = optimize.brentq(lambda truth: hall(truth) + quantile, mean - far, mean + far, xtol=1e-13)
    half = quantile * deviation / math.sqrt(n)
    return min(low, mean - half), max(high, mean + half)


@pytest.mark.parametrize("values", [SKEWED, [-v for v in SKEWED], [0.3, 0.1, 0.4, 0.1, 0.5], [1.0, 2.0, 4.0]])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_bounds_are_those_of_a_search(values, level):
    found = mean_interval(values, level)
    assert (found.low, found.high) == pytest.approx(by_hand(values, level), abs=1e-9)
    assert found.estimate == pytest.approx(sum(values) / len(values), abs=1e-12)


def test_without_skew_it_is_students_interval():
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    found = mean_interval(values)
    plain = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=1e-9)


def test_it_reaches_further_towards_the_long_tail():
    found, plain = mean_interval(SKEWED), stats.ttest_1samp(SKEWED, 0.0).confidence_interval(0.95)
    assert found.high > plain.high + 0.1
    assert found.low == pytest.approx(plain.low)


@pytest.mark.parametrize("value", [-0.3, 0.0, 0.2, 0.55, 1.4, 3.0])
def test_the_p_value_fits_the_interval(value):
    p = float(p_value(moments_of_mean(np.array(SKEWED)), value))
    inside, outside = mean_interval(SKEWED, 1 - p + 1e-9), mean_interval(SKEWED, 1 - p - 1e-9)
    assert inside.low <= value <= inside.high
    assert outside.excludes(value)


def test_columns_of_a_band_are_intervals_of_their_own():
    table = np.random.default_rng(0).gamma(1.0, size=(7, 5))
    mean, low, high = mean_band(table)
    for k in range(5):
        one = mean_interval(table[:, k])
        assert (mean[k], low[k], high[k]) == pytest.approx((one.estimate, one.low, one.high), abs=1e-12)


def test_parts_are_combined_with_satterthwaites_degrees_of_freedom():
    rng = np.random.default_rng(1)
    x, y = rng.normal(0, 1, 6), rng.normal(0, 3, 9)
    known = combined([moments_of_mean(x), moments_of_mean(y)], np.array([1.0, -1.0]))
    welch = stats.ttest_ind(x, y, equal_var=False)
    assert float(known.freedom) == pytest.approx(welch.df, abs=1e-9)
    assert float(known.estimate / np.sqrt(known.variance)) == pytest.approx(welch.statistic, abs=1e-9)


@pytest.mark.parametrize("weight", [0.25, -2.0])
def test_the_skew_of_a_sum_goes_with_its_weights(weight):
    scaled = combined([moments_of_mean(np.array(SKEWED))], [weight])
    ends = sorted(weight * bound for bound in by_hand(SKEWED, 0.95))
    assert [float(bound) for bound in bounds(scaled, 0.95)] == pytest.approx(ends, abs=1e-9)


def test_the_skew_of_two_samples_is_weaker_than_that_of_one():
    part = moments_of_mean(np.array(SKEWED))
    both = combined([part, part], [0.5, 0.5])
    # Twice as many independent numbers: variance by two, third moment by four.
    assert float(both.variance) == pytest.approx(float(part.variance) / 2)
    assert float(both.third) == pytest.approx(float(part.third) / 4)


def test_one_value_is_shown_and_claims_nothing():
    found = mean_interval([0.4])
    assert found.estimate == 0.4 and not found.known and not found.excludes(0.0) and not found.excludes(9.0)
    assert found.coverage is None
    assert str(found) == "0.400 [no interval]"
    assert found.row()["low"] is None


def test_equal_values_have_no_width():
    found = mean_interval([0.1] * 7)
    assert (found.estimate, found.low, found.high) == (0.1, 0.1, 0.1)


def test_what_is_none_is_refused():
    with pytest.raises(ShapeError, match=r"`values` must be a list of numbers.*try"):
        mean_interval([])
    with pytest.raises(ConfigError, match=r"`values` must be finite numbers, got nan at place 1; try"):
        mean_interval([1.0, math.nan])
    with pytest.raises(ConfigError, match=r"`level` must lie between 0 and 1, got 95"):
        mean_interval([1.0, 2.0], 95)


def test_an_interval_says_its_own():
    found = Interval(0.5, 0.25, math.inf)
    assert found.known and found.excludes(0.2) and not found.excludes(1e9)
    assert found.row()["high"] is None and found.row()["low"] == 0.25


@pytest.mark.parametrize(
    "draw, truth, least",
    [
        (lambda rng, shape: rng.normal(size=shape), 0.0, 0.94),
        (lambda rng, shape: rng.exponential(size=shape), 1.0, 0.93),
        (lambda rng, shape: rng.beta(9, 1, size=shape), 0.9, 0.935),
        (lambda rng, shape: np.where(rng.random(shape) < 0.3, 0.0, rng.normal(0.9, 0.05, shape)), 0.63, 0.93),
    ],
)
def test_ten_values_cover(draw, truth, least):
    _, low, high = mean_band(draw(np.random.default_rng(0), (10, 4000)))
    assert ((low <= truth) & (truth <= high)).mean() >= least
