from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

import unirl_env.functional as F
from unirl_env.errors import ConfigError


def test_none_explores():
    assert F.choose_steps("none", 10) == F.choose_steps("none", 1) == ()


def test_all_leaves_out_the_step_to_zero():
    assert F.choose_steps("all", 5) == (0, 1, 2, 3)
    assert F.choose_steps("all", 5, include_last=True) == (0, 1, 2, 3, 4)


def test_fraction():
    assert F.choose_steps("fraction", 10) == (0, 1, 2, 3, 4)
    assert F.choose_steps("fraction", 10, fraction=(0.2, 0.7)) == (2, 3, 4, 5, 6)
    assert F.choose_steps("fraction", 10, fraction=(0.0, 1.0)) == tuple(range(9))
    assert F.choose_steps("fraction", 10, fraction=(0.0, 1.0), include_last=True) == tuple(range(10))
    # 0.14 * 50 is 7.000000000000001
    assert F.choose_steps("fraction", 50, fraction=(0.14, 0.18)) == (7, 8)
    assert F.choose_steps("fraction", 50, fraction=(0.1, 0.14)) == (5, 6)


@given(st.integers(2, 60), st.integers(1, 59))
def test_fractions_that_meet_an_index_do_not_lose_it_to_rounding(num_steps, cut):
    cut = min(cut, num_steps - 1)
    assert F.choose_steps("fraction", num_steps, fraction=(0.0, cut / num_steps)) == tuple(range(cut))


def test_window_moves_from_noise_to_data_and_starts_over():
    windows = [F.choose_steps("window", 10, iteration=i) for i in (0, 24, 25, 49, 50, 74, 75)]
    first, second, third = (0, 1, 2, 3), (3, 4, 5, 6), (5, 6, 7, 8)
    assert windows == [first, first, second, second, third, third, first]


def test_window_with_the_last_step_and_a_stride():
    starts = [
        F.choose_steps("window", 10, stride=1, iterations_per_window=1, iteration=i, include_last=True)[0]
        for i in range(8)
    ]
    assert starts == [0, 1, 2, 3, 4, 5, 6, 0]


def test_window_longer_than_the_trajectory_is_all_of_it():
    assert F.choose_steps("window", 4, window=9, iteration=1000) == (0, 1, 2)


def test_random_depends_on_seed_and_iteration():
    def draws(seed):
        return [F.choose_steps("random", 10, count=3, seed=seed, iteration=i) for i in range(20)]

    assert draws(0) == draws(0)
    assert draws(0) != draws(1)
    assert len(set(draws(0))) > 5


def test_random_draws_every_usable_step_equally_often():
    counts = Counter(
        step
        for i in range(3000)
        for step in F.choose_steps("random", 10, count=2, fraction=(0.0, 1.0), seed=3, iteration=i)
    )
    assert set(counts) == set(range(9))
    expected = 3000 * 2 / 9
    assert all(abs(n - expected) < 6 * expected**0.5 for n in counts.values())


@given(
    kind=st.sampled_from(["all", "fraction", "random", "window"]),
    num_steps=st.integers(2, 50),
    window=st.integers(1, 8),
    stride=st.none() | st.integers(1, 5),
    seed=st.integers(0, 2**40),
    iteration=st.integers(0, 10_000),
)
def test_rising_indices_without_the_last(kind, num_steps, window, stride, seed, iteration):
    steps = F.choose_steps(
        kind,
        num_steps,
        fraction=(0.0, 1.0),
        count=1,
        window=window,
        stride=stride,
        iterations_per_window=3,
        seed=seed,
        iteration=iteration,
    )
    assert isinstance(steps, tuple) and len(steps) >= 1
    assert all(isinstance(step, int) for step in steps)
    assert list(steps) == sorted(set(steps))
    assert steps[0] >= 0 and steps[-1] <= num_steps - 2


@given(st.integers(2, 40), st.integers(1, 6), st.none() | st.integers(1, 6))
def test_full_windows_that_reach_both_ends(num_steps, window, stride):
    windows = [
        F.choose_steps(
            "window", num_steps, window=window, stride=stride, iterations_per_window=1, iteration=i
        )
        for i in range(num_steps)
    ]
    covered = {step for steps in windows for step in steps}
    assert {len(steps) for steps in windows} == {min(window, num_steps - 1)}
    assert {0, num_steps - 2} <= covered
    if stride is None or stride <= window:
        assert covered == set(range(num_steps - 1))


@pytest.mark.parametrize(
    "settings, word",
    [
        (dict(kind="half", num_steps=10), "kind"),
        (dict(kind="all", num_steps=1), "num_steps"),
        (dict(kind="random", num_steps=10), "count"),
        (dict(kind="random", num_steps=10, count=6), "count"),
        (dict(kind="fraction", num_steps=10, fraction=(0.5, 0.5)), "fraction"),
        (dict(kind="fraction", num_steps=10, fraction=(0.0, 1.5)), "fraction"),
        (dict(kind="fraction", num_steps=10, fraction=(0.95, 1.0)), "fraction"),
        (dict(kind="window", num_steps=10, window=0), "window"),
        (dict(kind="window", num_steps=10, stride=0), "stride"),
        (dict(kind="window", num_steps=10, iterations_per_window=0), "iterations_per_window"),
        (dict(kind="all", num_steps=10, iteration=-1), "iteration"),
    ],
)
def test_refuses(settings, word):
    with pytest.raises(ConfigError, match=word):
        F.choose_steps(**settings)
