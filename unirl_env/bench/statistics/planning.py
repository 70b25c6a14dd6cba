"""How many seeds it takes to see an effect, from the differences of a few.

The power of the paired t-test is exact for normal differences: it is that of the noncentral t. What is not
known is the variance: a pilot of few seeds may have been quiet by luck. So a plan says two numbers of
seeds, by the variance as it was seen, and by an upper bound of it, which the truth exceeds in one of five
pilots.

Our test is never bolder than the t-test, since its interval is widened for skew. By simulation that costs as
much as one seed, which is added from five seeds on, where the skew is looked at.

Reference:
    Cohen, Statistical power analysis for the behavioral sciences, 2nd ed. (1988), chapter 2.
    Browne, On the use of a pilot sample for sample size determination, Statist. Med. 14 (1995), 1933-1940.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from unirl_env.bench.statistics.pairs import ROUNDING
from unirl_env.errors import ConfigError, ShapeError
from unirl_env.statistics.given import Array, numbers, proper_level
from unirl_env.statistics.studentised import ENOUGH

CONFIDENCE = 0.8
"""Of the upper bound of the variance."""
MOST = 1_000_000


@dataclass(frozen=True)
class Plan:
    """Seeds to see an effect.

    Attributes:
        seeds: By the variance that the pilot had.
        seeds_if_noisier: By the upper bound of that variance.
        deviation: Standard deviation of the pilot's differences, in units of the score.
        deviation_if_noisier: Its upper bound (80 %, one-sided).
        detectable: The effect that as many seeds as the pilot's would show, by the variance it had.
        effect: What is to be seen.
        power: How often, if it is there.
        level: Of the interval that is to exclude zero.
        pilot: Pairs in the pilot.
    """

    seeds: int
    seeds_if_noisier: int
    deviation: float
    deviation_if_noisier: float
    detectable: float
    effect: float
    power: float
    level: float
    pilot: int


def seeds_needed(
    pilot: Sequence[float] | Array, effect: float, power: float = 0.8, level: float = 0.95
) -> Plan:
    """Seeds for which a difference of `effect` is found with probability `power`.

    Differences that are all equal need as many seeds as the sign test does.

    Args:
        pilot: Paired differences of two agents [n], at least 2; their mean does not matter.
        effect: The difference that is to be seen, in units of the score; its sign does not matter.
        power: How often it is to be seen, if it is there.
        level: Of the interval that is to exclude zero.

    Raises:
        ShapeError: If the pilot has fewer than two differences.
        ConfigError: If a number is not finite, or effect, power or level make no sense.
    """
    from scipy.special import chdtri

    given = numbers(pilot, "pilot")
    proper_level(level)
    if len(given) < 2:
        raise ShapeError(f"`pilot` must have at least 2 differences, got {len(given)}; try two more seeds.")
    if not (math.isfinite(effect) and effect != 0):
        raise ConfigError(f"`effect` must be a number other than 0, got {effect}; try 0.02.")
    if not 1 - level < power < 1:
        raise ConfigError(f"`power` must lie between {1 - level:g} and 1, got {power}; try 0.8.")
    # Equal numbers, whose mean may differ from them in the last bit, have no deviation.
    same = np.ptp(given) <= ROUNDING * abs(given).max()
    deviation = 0.0 if same else float(given.std(ddof=1))
    # chdtri takes the chance of what lies above.
    noisier = deviation * math.sqrt((len(given) - 1) / float(chdtri(len(given) - 1, CONFIDENCE)))
    seeds, more = (_seeds(abs(effect) / d if d else math.inf, power, level) for d in (deviation, noisier))
    detectable = _detectable(len(given), power, level) * deviation
    return Plan(seeds, more, deviation, noisier, detectable, effect, power, level, len(given))


def power_of(seeds: int, effect: float, level: float) -> float:
    """Power of the two-sided paired t-test; `effect` in standard deviations of the differences."""
    from scipy.special import nctdtr, stdtrit

    quantile, shift = float(stdtrit(seeds - 1, 0.5 + level / 2)), effect * math.sqrt(seeds)
    if shift > 30:
        return 1.0
    return float(1 - nctdtr(seeds - 1, shift, quantile) + nctdtr(seeds - 1, shift, -quantile))


def _seeds(effect: float, power: float, level: float) -> int:
    """The smallest number of seeds with the power; `effect` in standard deviations."""
    if math.isinf(effect):
        return next(n for n in range(2, 100) if 2.0 ** (1 - n) < 1 - level)
    if power_of(MOST, effect, level) < power:
        raise ConfigError(
            f"`effect` must be visible with at most {MOST} seeds, got {effect:.2g} standard deviations; try "
            "a larger one."
        )
    seeds = _first(lambda seeds: power_of(seeds, effect, level) >= power)
    return seeds + (seeds > ENOUGH)


def _first(enough: Callable[[int], bool]) -> int:
    """The smallest number from 2 on that is enough, where every larger one is, too."""
    low, high = 1, 2
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _detectable(seeds: int, power: float, level: float) -> float:
    """The effect, in standard deviations, that so many seeds find with the power."""
    seeds -= seeds > ENOUGH
    low, high = 0.0, 1.0
    while power_of(seeds, high, level) < power:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if power_of(seeds, middle, level) >= power else (middle, high)
    return high
