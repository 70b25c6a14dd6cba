"""Intervals of shares: how many of so many, where the units may be worth less or more than one each."""

from __future__ import annotations

import numpy as np

from unirl_env.statistics.given import Array


def exact_bounds(share: Array, count: Array | float, level: float) -> tuple[Array, Array]:
    """Clopper and Pearson's bounds of a share among `count` units, which need not be a whole number.

    They hold the truth at least as often as the level says where the units have different chances, too
    (a sum of such varies less than a binomial one).

    Reference:
        Clopper & Pearson, Biometrika 26 (1934), 404-413; Hoeffding, Ann. Math. Statist. 27 (1956), 713-721.
    """
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    hits = np.asarray(share * count, dtype=float)
    misses = np.asarray((1 - share) * count, dtype=float)
    # What rounding leaves of no hits at all is none.
    none, all_of_them = hits <= 1e-9, misses <= 1e-9
    low = np.where(none, 0.0, betaincinv(np.where(none, 1.0, hits), misses + 1, tail))
    high = np.where(all_of_them, 1.0, betaincinv(hits + 1, np.where(all_of_them, 1.0, misses), 1 - tail))
    return low, high


def score_bounds(share: Array, count: Array, quantile: Array) -> tuple[Array, Array]:
    """Wilson's bounds of a share that varies as one of `count` units does, with the quantile of a t.

    Reference:
        Wilson, J. Am. Statist. Assoc. 22 (1927), 209-212.
    """
    worth = quantile**2 / count
    centre = (share + worth / 2) / (1 + worth)
    half = np.sqrt(worth * (share * (1 - share) + worth / 4)) / (1 + worth)
    return np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)
