"""Performance profiles, against counting and the exact test of a binomial share."""

import math

import numpy as np
import pytest
from scipy import stats

from unirl_env.bench.statistics import performance_profile
from unirl_env.errors import ConfigError, ShapeError

SCORES = {"a": [0.1, 0.4, 0.4, 0.9], "b": [0.5, 0.6, 0.7, 0.8]}


def test_shares_are_counted_and_bounds_are_exact():
    thresholds = [-1.0, 0.4, 0.65, 0.9, 2.0]
    share, low, high = performance_profile(SCORES, thresholds)
    for k, threshold in enumerate(thresholds):
        hits = sum(value > threshold for seeds in SCORES.values() for value in seeds)
        known = stats.binomtest(hits, 8).proportion_ci(0.95, "exact")
        assert share[k] == pytest.approx(hits / 8, abs=1e-12)
        assert (low[k], high[k]) == pytest.approx((known.low, known.high), abs=1e-9)


def test_tasks_count_alike_whatever_their_seeds():
    share, low, high = performance_profile({"a": [1.0] * 9, "b": [0.0]}, [0.5])
    assert share[0] == pytest.approx(0.5)
    # Worth 4 / (1/9 + 1) = 3.6 runs, of which 1.8 are above.
    assert low[0] == pytest.approx(stats.beta.ppf(0.025, 1.8, 2.8), abs=1e-9)
    assert high[0] == pytest.approx(stats.beta.ppf(0.975, 2.8, 1.8), abs=1e-9)


def test_it_falls_and_the_band_holds_it():
    rng = np.random.default_rng(0)
    share, low, high = performance_profile({str(k): rng.random(7) for k in range(3)}, np.linspace(0, 1, 50))
    assert (
        (np.diff(share) <= 1e-12).all() and (np.diff(high) <= 1e-12).all() and (np.diff(low) <= 1e-12).all()
    )
    assert (low <= share).all() and (share <= high).all()


def test_mistakes_are_named():
    with pytest.raises(ShapeError, match="`thresholds` must be a list of numbers"):
        performance_profile(SCORES, [])
    with pytest.raises(ConfigError, match="`thresholds` must be finite"):
        performance_profile(SCORES, [math.inf])


def test_it_covers_where_tasks_differ():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(1000):
        scores = {str(k): rng.random(5) + k / 4 for k in range(3)}
        _, low, high = performance_profile(scores, [0.75])
        hits += low[0] <= (0.25 + 0.5 + 0.75) / 3 <= high[0]
    assert hits >= 950
