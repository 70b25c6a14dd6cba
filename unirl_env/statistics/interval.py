"""An estimate, the bounds that go with it, and how often such bounds were seen to hold the truth."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_MEASURED = Path(__file__).with_name("coverage.json")
MEASURED_LEVEL = 0.95
"""The level at which coverage was measured; intervals of other levels carry none."""


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds of its interval.

    Attributes:
        estimate: What was seen.
        low: The lower bound; NaN where too little was seen to claim one, minus infinity where there is none.
        high: The upper bound, likewise.
        level: How often the bounds are meant to hold the truth.
        method: How they were made, in words.
        coverage: How often they did in simulations of 3, 5, 10 and 30 seeds: the worst over the
            distributions that were tried. None where that was not measured.
        rare: The same where no interval of so few seeds can do it: one seed in ten fails, or the skew is
            heavy. What has not been seen cannot widen an interval.
    """

    estimate: float
    low: float
    high: float
    level: float = MEASURED_LEVEL
    method: str = ""
    coverage: Mapping[str, float] | None = None
    rare: Mapping[str, float] | None = None

    def __str__(self) -> str:
        if not self.known:
            return f"{self.estimate:.3f} [no interval]"
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def known(self) -> bool:
        """Whether there are bounds at all."""
        return not (math.isnan(self.low) or math.isnan(self.high))

    def excludes(self, value: float = 0.0) -> bool:
        """Whether `value` lies outside; never, where there are no bounds."""
        return self.low > value or self.high < value

    def row(self) -> dict[str, Any]:
        """The interval as JSON, where null stands for a number that is none."""
        numbers = {"estimate": self.estimate, "low": self.low, "high": self.high, "level": self.level}
        known = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        carried = {
            name: dict(part) if part else None
            for name, part in (("coverage", self.coverage), ("rare", self.rare))
        }
        return known | {"method": self.method} | carried


def measured(statistic: str, level: float) -> dict[str, Mapping[str, float] | None]:
    """The arguments `coverage` and `rare` of an interval of `statistic`; none at levels not measured."""
    found = _table().get(statistic, {}) if level == MEASURED_LEVEL else {}
    return {name: found.get(name) for name in ("coverage", "rare")}


def coverage_in_words(statistic: str, units: int) -> str:
    """How often intervals of at most so many units held the truth; empty where that was not measured."""
    found = measured(statistic, MEASURED_LEVEL)
    ordinary, rare = found["coverage"] or {}, found["rare"]
    known = [count for count in map(int, ordinary) if count <= units]
    if not known:
        return ""
    count = str(max(known))
    beyond = f", and in {100 * rare[count]:.0f} % where what is rare was often not seen" if rare else ""
    return (
        f"With {count} of them, such intervals held the truth in {100 * ordinary[count]:.0f} % of "
        f"simulations at worst{beyond}."
    )


@cache
def _table() -> dict[str, dict[str, Mapping[str, float]]]:
    if not _MEASURED.exists():
        return {}
    table: dict[str, dict[str, Mapping[str, float]]] = json.loads(_MEASURED.read_text(encoding="utf-8"))
    return table
