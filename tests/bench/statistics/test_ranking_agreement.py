"""Kendall's tau between suites, against scipy, and against all orders that are left open."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from unirl_env.bench.statistics import kendall
from unirl_env.errors import ConfigError


def suite(places, noise, seed=0, seeds=6, tasks=2):
    rng = np.random.default_rng(seed)
    return {
        agent: {f"t{k}": (place + k + noise * rng.normal(size=seeds)).tolist() for k in range(tasks)}
        for agent, place in places.items()
    }


def means(scores):
    return [np.mean([np.mean(seeds) for seeds in scores[agent].values()]) for agent in sorted(scores)]


@pytest.mark.parametrize("seed", range(4))
def test_the_estimate_is_scipys(seed):
    first = suite(dict(zip("abcdef", range(6), strict=True)), 3.0, seed)
    second = suite(dict(zip("fbcdea", range(6), strict=True)), 3.0, seed + 10)
    plain = stats.kendalltau(means(first), means(second)).statistic
    assert kendall(first, second).estimate == pytest.approx(plain, abs=1e-12)


def test_ties_are_those_of_tau_b():
    first = {agent: {"t": [value] * 3} for agent, value in zip("abcd", [1, 2, 2, 3], strict=True)}
    second = {agent: {"t": [value] * 3} for agent, value in zip("abcd", [1, 1, 2, 4], strict=True)}
    plain = stats.kendalltau([1, 2, 2, 3], [1, 1, 2, 4]).statistic
    assert kendall(first, second).estimate == pytest.approx(plain, abs=1e-12)


def test_orders_that_are_known_leave_nothing_open():
    places = {"a": 0.0, "b": 10.0, "c": 20.0, "d": 30.0}
    same = kendall(suite(places, 0.1), suite(places, 0.1, 1))
    assert (same.estimate, same.low, same.high) == (1.0, 1.0, 1.0)
    turned = kendall(suite(places, 0.1), suite({k: -v for k, v in places.items()}, 0.1, 1))
    assert (turned.estimate, turned.low, turned.high) == (-1.0, -1.0, -1.0)


def test_the_interval_is_over_all_that_open_pairs_may_do():
    # a and b cannot be told apart in the first suite, c and d lie far above.
    rng = np.random.default_rng(0)
    first = {
        agent: {"t": (place + rng.normal(size=5)).tolist()}
        for agent, place in zip("abcd", [0.0, 0.0, 50.0, 100.0], strict=True)
    }
    second = suite({"a": 0.0, "b": 10.0, "c": 20.0, "d": 30.0}, 0.1, 1)
    assert stats.ttest_ind(first["a"]["t"], first["b"]["t"], equal_var=False).pvalue > 0.1
    taus = []
    for order in itertools.permutations(range(4)):
        if order.index(3) == 3 and order.index(2) == 2:
            taus.append(stats.kendalltau([order.index(k) for k in range(4)], range(4)).statistic)
    found = kendall(first, second)
    assert len(taus) == 2
    assert (found.low, found.high) == pytest.approx((min(taus), max(taus)), abs=1e-12)


def test_runs_that_never_differ_are_judged_by_their_number():
    def alike(count):
        return {"a": {"t": [0.0] * count}, "b": {"t": [1.0] * count}}

    # All of two runs above all of two others: one deal in three, on either side. Of four, one in 35.
    assert kendall(alike(2), alike(2)).low == -1.0
    assert kendall(alike(4), alike(4)).low == 1.0


def test_one_seed_knows_no_order():
    first = {"a": {"t": [1.0]}, "b": {"t": [2.0]}}
    found = kendall(first, first)
    assert (found.estimate, found.low, found.high) == (1.0, -1.0, 1.0)


def test_agents_that_are_all_alike_have_no_ranking():
    alike = {"a": {"t": [1.0, 1.0]}, "b": {"t": [1.0, 1.0]}}
    assert math.isnan(kendall(alike, suite({"a": 0.0, "b": 1.0}, 0.1)).estimate)


def test_mistakes_are_named():
    with pytest.raises(
        ConfigError, match=r"must rank the same agents, at least two, got \['a'\] and \['b'\]"
    ):
        kendall({"a": {"t": [1.0]}}, {"b": {"t": [1.0]}})
    lacking = {"a": {"t": [1.0], "u": [1.0]}, "b": {"t": [1.0]}}
    with pytest.raises(ConfigError, match="`b` must have the tasks of the other agents, t, u, got t; try"):
        kendall(lacking, lacking)


def test_it_holds_the_truth_where_agents_are_close():
    # One suite knows the order, the other one cannot: percentiles of a bootstrap cover less than half of it.
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(150):
        first = {str(k): {"t": 5.0 * k + rng.normal(size=10)} for k in range(4)}
        second = {str(k): {"t": 0.05 * k + rng.normal(size=10)} for k in range(4)}
        hits += kendall(first, second).high == 1.0
    assert hits >= 139
