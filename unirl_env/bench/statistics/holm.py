"""P-values of many comparisons, so that one false find among all of them is as rare as the level says."""

from __future__ import annotations

import math
from collections.abc import Sequence

from unirl_env.errors import ConfigError


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values [k], in the order given.

    A NaN, as of a comparison by one seed, is no comparison: it stays NaN, and does not count.

    Raises:
        ConfigError: If one is neither NaN nor between 0 and 1.

    Reference:
        Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979), 65-70.
    """
    adjusted = [math.nan] * len(p_values)
    for place, p in enumerate(p_values):
        if not (math.isnan(p) or 0.0 <= p <= 1.0):
            raise ConfigError(
                f"`p_values` must lie between 0 and 1, got {p} at place {place}; try the p-values as "
                "`paired` gives them."
            )
    order = sorted((place for place, p in enumerate(p_values) if not math.isnan(p)), key=p_values.__getitem__)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
