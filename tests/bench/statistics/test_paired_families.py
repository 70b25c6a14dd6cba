"""Comparisons judged together, against Holm's definition and by how often they find nothing that is there."""

import math

import numpy as np
import pytest

from unirl_env.bench.statistics import holm, paired, paired_together


def family(seed, shifts):
    rng = np.random.default_rng(seed)
    return {name: (shift + rng.normal(size=8), np.zeros(8)) for name, shift in shifts.items()}


@pytest.mark.parametrize("seed", range(30))
def test_intervals_fit_holms_p_values(seed):
    pairs = family(seed, {"a": 0.0, "b": 0.7, "c": 0.9, "d": 1.2, "e": 3.0})
    found = paired_together(pairs)
    assert list(found) == list(pairs)
    adjusted = holm([paired(x, y).p_value for x, y in pairs.values()])
    assert [one.p_value for one in found.values()] == adjusted
    for one in found.values():
        assert one.difference.excludes(0.0) == (one.p_value < 0.05)


def test_levels_by_hand():
    pairs = family(1, {"none": 0.0, "some": 9.0, "other": 8.0})
    found = paired_together(pairs)
    ranked = sorted(pairs, key=lambda name: paired(*pairs[name]).p_value)
    assert ranked[-1] == "none"
    levels = [found[name].difference.level for name in ranked]
    assert levels == pytest.approx([1 - 0.05 / 3, 1 - 0.05 / 2, 0.95])
    lost = paired_together(family(1, {"x": 0.0, "y": 0.1, "z": -0.1}))
    assert [one.difference.level for one in lost.values()] == pytest.approx([1 - 0.05 / 3] * 3)


def test_tasks_and_single_seeds():
    x, y = {"s": [1.0, 2.0, 3.0], "t": [0.0, 1.0, 0.0]}, {"s": [0.0, 1.0, 1.0], "t": [0.0, 0.0, 0.0]}
    found = paired_together({"tasks": (x, y), "one": ([1.0], [0.0])})
    assert math.isnan(found["one"].p_value) and not found["one"].difference.known
    assert found["tasks"].difference.level == pytest.approx(0.95)
    assert paired_together({}) == {}


def test_one_false_find_in_a_family_is_as_rare_as_said():
    rng = np.random.default_rng(0)
    finds = 0
    for _ in range(400):
        pairs = {k: (rng.normal(size=6), rng.normal(size=6)) for k in range(5)}
        finds += any(one.difference.excludes(0.0) for one in paired_together(pairs).values())
    assert finds <= 32
