"""The settings of the alarm, as data; `unirl_env.config` has them among the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["AlarmSettings"]


@dataclass
class AlarmSettings:
    """When a run warns that its reward says less and less; a bound of null is not watched."""

    heldout_every: int = 5
    """Iterations from one held-out score of the training samples to the next; 0 takes none."""
    smooth: int = 3
    """Observations whose mean is held against a bound."""
    patience: int = 3
    """Such means in a row that must be beyond it."""
    gap: float | None = 0.5
    """Rise of the training reward and fall of the held-out one, both in standard deviations of the start."""
    diversity: float | None = 0.25
    """How small a share of its first value the variety within groups may become."""
    saturation: float | None = 0.99
    """How large a share of the episodes may earn the highest reward of all."""
    zero_std_groups: float | None = 0.9
    """How large a share of the groups may teach nothing."""
    stop: Any = "none"
    """Which alarms end the run: `none`, `all`, or a list of the names of bounds above."""
