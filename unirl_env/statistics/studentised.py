"""Student's interval, widened towards the side on which a skewed sample leaves the truth.

For a skewed population Student's t misses mostly on one side: where the sample saw little of the long tail,
its mean and its deviation are too small together. Hall's monotone transformation of t takes the first-order
part of that away. Alone it is too narrow under heavy tails, so the interval is the union of both: never
narrower than Student's. The p-value is the larger one of both tests, so that it lies below `1 - level` just
where the interval leaves the value out.

With fewer than four degrees of freedom a skew cannot be told from chance, and Student's interval stands
alone.

Reference:
    Hall, On the removal of skewness by transformation, J. R. Statist. Soc. B 54 (1992), 221-228.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unirl_env.statistics.given import Array

ENOUGH = 4.0
"""Degrees of freedom from which on the skew is looked at."""


@dataclass(frozen=True)
class Moments:
    """What is known of an estimate that is a sum of independent parts; arrays of one shape, or numbers.

    Attributes:
        estimate: The estimate.
        variance: Of the estimate.
        third: Third central moment of the estimate.
        freedom: Degrees of freedom of the variance.
    """

    estimate: Array
    variance: Array
    third: Array
    freedom: Array


def moments_of_mean(values: Array) -> Moments:
    """Moments of the mean over axis 0 of `values` [n, ...]; n must be at least 2.

    The moments that estimate the skew are those of the sample (divided by n).
    """
    count = len(values)
    mean = values.mean(0)
    apart = values - mean
    variance = (apart**2).sum(0) / (count - 1) / count
    # A skew of the sample, put in units of the unbiased deviation.
    spread = (apart**2).mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        skew = np.where(spread > 0, (apart**3).mean(0) / spread**1.5, 0.0)
    third = skew * variance**1.5 / np.sqrt(count)
    return Moments(mean, variance, third, np.full_like(mean, count - 1.0))


def combined(parts: Sequence[Moments], weights: Sequence[float] | Array) -> Moments:
    """Moments of the weighted sum of independent estimates, with Satterthwaite's degrees of freedom.

    Reference:
        Satterthwaite, An approximate distribution of estimates of variance components, Biometrics 2 (1946).
    """
    variances = np.array([w**2 * part.variance for w, part in zip(weights, parts, strict=True)])
    thirds = np.array([w**3 * part.third for w, part in zip(weights, parts, strict=True)])
    freedoms = np.array([part.freedom for part in parts])
    total = variances.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = np.where(total > 0, total**2 / (variances**2 / freedoms).sum(0), freedoms.sum(0))
    estimate = np.array([w * part.estimate for w, part in zip(weights, parts, strict=True)]).sum(0)
    return Moments(estimate, total, thirds.sum(0), freedom)


def bounds(known: Moments, level: float) -> tuple[Array, Array]:
    """Lower and upper bound; where the variance is zero both are the estimate."""
    from scipy.special import stdtrit

    quantile = stdtrit(known.freedom, 0.5 + level / 2)
    error = np.sqrt(known.variance)
    skew = _skew(known)
    up, down = (np.maximum(quantile, side) for side in (-_undone(-quantile, skew), _undone(quantile, skew)))
    return known.estimate - down * error, known.estimate + up * error


def p_value(known: Moments, value: float = 0.0) -> Array:
    """Two-sided p-value of the hypothesis that the truth is `value`; fits `bounds` at every level.

    Where the variance is zero it is 1 if the estimate is `value`, and 0 if not.
    """
    from scipy.special import stdtr

    apart = known.estimate - value
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.where(known.variance > 0, apart / np.sqrt(known.variance), np.sign(apart) * np.inf)
    certain = known.variance <= 0
    statistic = np.where(certain & (apart == 0), 0.0, statistic)
    moved = np.where(certain, statistic, _transformed(np.where(certain, 0.0, statistic), _skew(known)))
    least = np.minimum(abs(statistic), abs(moved))
    return np.asarray(2 * stdtr(known.freedom, -least))


def _skew(known: Moments) -> Array:
    """Skewness of the estimate itself; zero where it cannot be known."""
    with np.errstate(divide="ignore", invalid="ignore"):
        skew = np.where(known.variance > 0, known.third / known.variance**1.5, 0.0)
    return np.asarray(np.where(known.freedom >= ENOUGH, skew, 0.0))


def _transformed(statistic: Array, skew: Array) -> Array:
    """Hall's transformation of t [any shape], where `skew` is that of the mean: gamma / sqrt(n)."""
    return np.asarray(statistic + skew * statistic**2 / 3 + skew**2 * statistic**3 / 27 + skew / 6)


def _undone(value: Array, skew: Array) -> Array:
    """The statistic whose transformation is `value`."""
    small = abs(skew) < 1e-8
    safe = np.where(small, 1.0, skew)
    cube = np.cbrt(1 + safe * (value - safe / 6))
    return np.asarray(np.where(small, value, 3 * (cube - 1) / safe))
