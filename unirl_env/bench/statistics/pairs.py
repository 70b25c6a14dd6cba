"""Two agents under the same seeds: the difference, its interval, and the p-value that fits it.

What is common to both sides, such as prompts and first noise, goes out of the difference. The interval
excludes zero just where the p-value lies below `1 - level`. Seeds are the units: over tasks, each seed has
its mean difference first, so that tasks that move together under a seed do not count as more evidence.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from unirl_env.errors import ConfigError, ShapeError
from unirl_env.statistics import Interval, mean_interval
from unirl_env.statistics.given import Array, by_task, numbers, proper_level, same_tasks
from unirl_env.statistics.interval import measured
from unirl_env.statistics.studentised import moments_of_mean, p_value

Seed = TypeVar("Seed", bound=Hashable)
ROUNDING = 1e-12
"""Differences below this share of the numbers themselves are none."""


@dataclass(frozen=True)
class Paired:
    """Of paired differences `x - y`.

    Attributes:
        difference: The mean with its interval.
        p_value: Two-sided, of the hypothesis that there is none; NaN for one pair.
        n: Pairs.
    """

    difference: Interval
    p_value: float
    n: int


def common(x: Mapping[Seed, Any], y: Mapping[Seed, Any]) -> tuple[list[Any], list[Any], list[Seed]]:
    """What two agents have of the seeds that both played: two lists in one order, and the seeds.

    Raises:
        ConfigError: If no seed is common.
    """
    seeds = sorted(x.keys() & y.keys(), key=repr)
    if not seeds:
        raise ConfigError(
            f"`x` and `y` must have seeds in common, got {sorted(x, key=repr)} and {sorted(y, key=repr)}; "
            "try running both with the same seeds."
        )
    return [x[seed] for seed in seeds], [y[seed] for seed in seeds], seeds


def paired(x: Sequence[Any] | Array, y: Sequence[Any] | Array, level: float = 0.95) -> Paired:
    """The mean of `x - y` over common seeds.

    Differences that are all the same, and not zero, have no spread to go by. Then the p-value is that of the
    sign test, `2 ** (1 - n)`, and bounds are given only where it lies below `1 - level`: from six pairs on.

    Args:
        x: One number per seed [n], or one per seed and prompt [n, prompts].
        y: The other agent's, under the same seeds (and prompts), in the same order.
        level: How often the interval is to hold the truth.

    Raises:
        ShapeError: If they differ in shape, or are empty.
        ConfigError: If a number is not finite, or the level is none.
    """
    rank = 2 if np.ndim(x) == 2 else 1
    first, second = numbers(x, "x", rank), numbers(y, "y", rank)
    if first.shape != second.shape:
        raise ShapeError(
            f"`x` and `y` must hold the same seeds, got {list(first.shape)} and {list(second.shape)} "
            "numbers; try `common`, which keeps those that both have."
        )
    apart = first - second
    apart[abs(apart) <= ROUNDING * np.maximum(abs(first), abs(second))] = 0.0
    return _of_differences(apart.mean(1) if rank == 2 else apart, level)


def paired_over_tasks(
    x: Mapping[str, Sequence[float] | Array], y: Mapping[str, Sequence[float] | Array], level: float = 0.95
) -> Paired:
    """The mean over tasks of paired differences, by seed: every task has the same weight.

    Args:
        x: Task to one number per seed [n], the same seeds in every task, in one order.
        y: The other agent's, likewise.
        level: How often the interval is to hold the truth.

    Raises:
        ShapeError: If tasks or agents differ in their number of seeds.
        ConfigError: If a task is missing on one side, a number is not finite, or the level is none.
    """
    first, second = by_task(x, "x"), by_task(y, "y")
    same_tasks(first, second, ("x", "y"))
    lengths = {task: (len(first[task]), len(second[task])) for task in first}
    if len({count for pair in lengths.values() for count in pair}) > 1:
        raise ShapeError(
            f"`x` and `y` must hold the same seeds in every task, got {lengths} of them; try those seeds "
            "that are there in all tasks."
        )
    tasks = sorted(first)
    return paired(np.stack([first[t] for t in tasks], 1), np.stack([second[t] for t in tasks], 1), level)


def _of_differences(apart: Array, level: float) -> Paired:
    proper_level(level)
    count = len(apart)
    found = mean_interval(apart, level)
    if count == 1:
        return Paired(found, math.nan, 1)
    carried = measured("paired", level)
    scale = float(abs(apart).max())
    if np.ptp(apart) > ROUNDING * scale:
        found = Interval(found.estimate, found.low, found.high, level, found.method, **carried)
        return Paired(found, float(p_value(moments_of_mean(apart))), count)
    same = float(apart[0])
    chance = 2.0 ** (1 - count) if same else 1.0
    bound = same if chance < 1 - level or not same else math.nan
    return Paired(Interval(same, bound, bound, level, "sign test: all pairs differ alike"), chance, count)
