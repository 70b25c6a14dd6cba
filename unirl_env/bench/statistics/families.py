"""Many paired comparisons judged together: Holm's p-values, and intervals that fit them.

A comparison that Holm's procedure finds has its interval at the level at which it was found, `1 - (1 -
level) / k` where k comparisons were left; all that it does not find have theirs at the level at which it
stopped. So an interval leaves zero out just where the adjusted p-value lies below `1 - level`.

Reference:
    Holm, Scand. J. Statist. 6 (1979), 65-70.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from unirl_env.bench.statistics.holm import holm
from unirl_env.bench.statistics.pairs import Paired, paired, paired_over_tasks

Name = TypeVar("Name")


def paired_together(pairs: Mapping[Name, tuple[Any, Any]], level: float = 0.95) -> dict[Name, Paired]:
    """Paired differences of a family, each with its adjusted p-value and an interval that fits it.

    Comparisons by one seed are shown, claim nothing and do not count.

    Args:
        pairs: What is compared to its two sides, as `paired` takes them, or as `paired_over_tasks` does.
        level: How often no difference of the family is to be found where there is none.

    Raises:
        ShapeError: As `paired` and `paired_over_tasks`.
        ConfigError: Likewise.
    """
    alone = {name: _pair(x, y, level) for name, (x, y) in pairs.items()}
    adjusted = dict(zip(alone, holm([found.p_value for found in alone.values()]), strict=True))
    order = sorted((n for n in alone if not math.isnan(adjusted[n])), key=lambda n: alone[n].p_value)
    together, left = dict(alone), len(order)
    for name in order:
        found = _pair(*pairs[name], 1 - (1 - level) / left)
        together[name] = replace(found, p_value=adjusted[name])
        if adjusted[name] < 1 - level:
            left -= 1
    return together


def _pair(x: Any, y: Any, level: float) -> Paired:
    return (paired_over_tasks if isinstance(x, Mapping) else paired)(x, y, level)
