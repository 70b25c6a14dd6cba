"""Paired differences, against scipy, enumeration, and an agent set against itself."""

import math

import numpy as np
import pytest
from scipy import stats

from unirl_env.bench.statistics import common, mean_interval, paired, paired_over_tasks
from unirl_env.errors import ConfigError, ShapeError

X = [0.31, 0.42, 0.38, 0.55, 0.47, 0.36]
Y = [0.25, 0.40, 0.30, 0.41, 0.45, 0.28]


def test_symmetric_differences_have_the_t_tests_numbers():
    x, y = [1.0, 2.0, 3.0, 4.0, 5.0], [0.0, 0.5, 1.0, 1.5, 2.0]
    found, plain = paired(x, y), stats.ttest_rel(x, y)
    known = plain.confidence_interval(0.95)
    assert found.p_value == pytest.approx(plain.pvalue, abs=1e-9)
    assert (found.difference.low, found.difference.high) == pytest.approx((known.low, known.high), abs=1e-9)
    assert found.n == 5


def test_the_difference_is_that_of_pairs():
    found = paired(X, Y)
    assert found.difference.estimate == pytest.approx(sum(a - b for a, b in zip(X, Y, strict=True)) / 6)
    alone = mean_interval([a - b for a, b in zip(X, Y, strict=True)])
    assert (found.difference.low, found.difference.high) == pytest.approx((alone.low, alone.high), abs=1e-12)
    back = paired(Y, X)
    assert back.p_value == pytest.approx(found.p_value, abs=1e-12)
    assert back.difference.low == pytest.approx(-found.difference.high, abs=1e-12)


def test_the_interval_leaves_zero_out_just_where_p_is_small():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(400):
        n, shift = int(rng.integers(2, 12)), rng.normal()
        apart = rng.exponential(size=n) * rng.choice([-1, 1]) + shift
        for level in (0.8, 0.95):
            found = paired(apart, np.zeros(n), level)
            assert found.difference.excludes(0.0) == (found.p_value < 1 - level)
            seen.add(found.difference.excludes(0.0))
    assert seen == {True, False}


def test_prompts_are_averaged_within_a_seed():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 6, 4))
    found, plain = paired(x, y), paired(x.mean(1), y.mean(1))
    assert found.n == 6
    assert found.difference.high == pytest.approx(plain.difference.high, abs=1e-12)


def test_tasks_are_put_together_by_seed():
    x = {"a": [1.0, 2.0, 4.0], "b": [0.0, 1.0, 0.0]}
    y = {"b": [0.0, 0.0, 1.0], "a": [0.5, 1.0, 1.0]}
    by_hand = [(0.5 + 0.0) / 2, (1.0 + 1.0) / 2, (3.0 - 1.0) / 2]
    found = paired_over_tasks(x, y)
    assert found.n == 3
    assert found.difference.estimate == pytest.approx(sum(by_hand) / 3)
    assert found.p_value == pytest.approx(stats.ttest_1samp(by_hand, 0.0).pvalue, abs=1e-9)


def test_seeds_of_one_side_are_left_out():
    x, y, seeds = common({1: 0.1, 2: 0.2, 3: 0.3}, {3: 0.5, 1: 0.6, 7: 0.9})
    assert (x, y, seeds) == ([0.1, 0.3], [0.6, 0.5], [1, 3])
    with pytest.raises(ConfigError, match=r"`x` and `y` must have seeds in common, got \[1\] and \[2\]"):
        common({1: 0.1}, {2: 0.1})


@pytest.mark.parametrize("count", [2, 3, 5, 6, 9])
def test_pairs_that_all_differ_alike_are_judged_by_their_signs(count):
    found = paired([1.0] * count, [0.75] * count)
    chance = stats.binomtest(count, count, 0.5).pvalue
    assert found.p_value == pytest.approx(chance, abs=1e-12)
    assert found.difference.excludes(0.0) == (chance < 0.05)
    assert found.difference.estimate == 0.25


def test_an_agent_is_the_same_as_itself():
    found = paired(X, X)
    assert (found.difference.low, found.difference.high, found.p_value) == (0.0, 0.0, 1.0)
    # What rounding makes of the same numbers is no difference either.
    found = paired([0.1 + 0.2] * 8, [0.3] * 8)
    assert found.p_value == 1.0 and not found.difference.excludes(0.0)


def test_one_seed_is_shown_and_claims_nothing():
    found = paired([0.9], [0.1])
    assert found.difference.estimate == pytest.approx(0.8)
    assert math.isnan(found.p_value) and not found.difference.known


def test_mistakes_are_named():
    with pytest.raises(
        ShapeError, match=r"must hold the same seeds, got \[2\] and \[3\] numbers; try `common`"
    ):
        paired([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ShapeError, match="`x` must be a list of numbers"):
        paired([], [])
    with pytest.raises(ConfigError, match="`y` must be finite numbers, got nan"):
        paired([1.0, 2.0], [1.0, math.nan])
    with pytest.raises(ConfigError, match="must have the same tasks, got b in one of them only"):
        paired_over_tasks({"a": [1.0], "b": [1.0]}, {"a": [1.0]})
    with pytest.raises(ShapeError, match="must hold the same seeds in every task"):
        paired_over_tasks({"a": [1.0, 2.0]}, {"a": [1.0]})


@pytest.mark.parametrize("tasks", [1, 6])
def test_an_agent_against_itself_is_seldom_called_different(tasks):
    # The control of a benchmark: ten of forty stored runs, dealt to two names, 1000 times.
    rng = np.random.default_rng(5)
    stored = {str(k): np.where(rng.random(40) < 0.2, 0.0, rng.normal(0.8, 0.1, 40)) for k in range(tasks)}
    called = 0
    for _ in range(1000):
        chosen = {task: rng.permutation(runs)[:20] for task, runs in stored.items()}
        x, y = ({task: runs[part] for task, runs in chosen.items()} for part in (slice(10), slice(10, 20)))
        called += paired_over_tasks(x, y).difference.excludes(0.0)
    assert 20 <= called <= 80
