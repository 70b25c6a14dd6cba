"""Seeds for an effect, against scipy's noncentral t, a search one by one, and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from unirl_env.bench.statistics import paired, seeds_needed
from unirl_env.bench.statistics.planning import power_of
from unirl_env.errors import ConfigError, ShapeError

PILOT = [0.02, -0.01, 0.05, 0.03, 0.00]


def power(seeds, effect, level=0.95):
    quantile = stats.t.ppf(0.5 + level / 2, seeds - 1)
    other = stats.nct(seeds - 1, effect * math.sqrt(seeds))
    return other.sf(quantile) + other.cdf(-quantile)


@pytest.mark.parametrize("seeds, effect", [(2, 1.0), (5, 0.5), (10, 1.0), (34, 0.5), (200, 0.2)])
def test_power_is_that_of_the_noncentral_t(seeds, effect):
    assert power_of(seeds, effect, 0.95) == pytest.approx(power(seeds, effect), abs=1e-7)


def one_by_one(effect):
    seeds = next(n for n in range(2, 500) if power(n, effect) >= 0.8)
    return seeds + 1 if seeds >= 5 else seeds


@pytest.mark.parametrize("effect", [0.01, 0.02, 0.05])
def test_seeds_are_the_first_that_are_enough(effect):
    plan = seeds_needed(PILOT, effect)
    spread = np.std(PILOT, ddof=1)
    assert plan.seeds == one_by_one(effect / spread)
    upper = spread * math.sqrt(4 / stats.chi2.ppf(0.2, 4))
    assert plan.deviation_if_noisier == pytest.approx(upper, abs=1e-9)
    assert plan.seeds_if_noisier == one_by_one(effect / upper)
    assert power(4, plan.detectable / spread) == pytest.approx(0.8, abs=1e-6)


@pytest.mark.parametrize("effect", [0.5, 1.0, 1.5])
def test_as_many_seeds_as_planned_find_the_effect(effect):
    seeds = seeds_needed([-(0.5**0.5), 0.5**0.5], effect).seeds
    drawn = effect + np.random.default_rng(0).normal(size=(2000, seeds))
    found = np.mean([paired(row, np.zeros(seeds)).difference.excludes(0.0) for row in drawn])
    assert 0.77 <= found <= 0.88


def test_neither_the_mean_nor_the_sign_matters():
    plain = seeds_needed(PILOT, 0.02)
    assert seeds_needed([v + 3 for v in PILOT], -0.02).seeds == plain.seeds
    assert seeds_needed(PILOT, 0.02, power=0.95).seeds > plain.seeds
    assert seeds_needed(PILOT, 0.02, level=0.99).seeds > plain.seeds


def test_differences_that_are_all_alike_need_the_sign_test():
    plan = seeds_needed([0.1, 0.1, 0.1], 0.1)
    assert plan.seeds == 6 and plan.deviation == 0.0
    assert paired([0.1] * 6, [0.0] * 6).difference.excludes(0.0)
    assert not paired([0.1] * 5, [0.0] * 5).difference.excludes(0.0)


def test_the_upper_bound_is_exceeded_by_one_truth_in_five():
    rng = np.random.default_rng(0)
    above = [seeds_needed(rng.normal(size=5), 1.0).deviation_if_noisier < 1.0 for _ in range(400)]
    assert 0.14 <= np.mean(above) <= 0.26


def test_mistakes_are_named():
    with pytest.raises(ShapeError, match="`pilot` must have at least 2 differences, got 1"):
        seeds_needed([0.1], 0.1)
    with pytest.raises(ConfigError, match="`effect` must be a number other than 0, got 0"):
        seeds_needed(PILOT, 0.0)
    with pytest.raises(ConfigError, match="`power` must lie between"):
        seeds_needed(PILOT, 0.1, power=1.0)
    with pytest.raises(ConfigError, match="`effect` must be visible with at most 1000000 seeds, got"):
        seeds_needed(PILOT, 1e-6)
