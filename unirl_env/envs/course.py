"""What decides the episodes that an environment starts by itself: the rest of a run, as four values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import unirl_env.functional as F

__all__ = ["Course"]


@dataclass(frozen=True)
class Course:
    """How the resets of an environment follow each other. Immutable, so that snapshots share it.

    Attributes:
        seed: The seed that the user gave last, or one drawn for a user who gave none.
        resets: How many resets without a seed came since.
        position: How many prompts were taken from the source since.
        options: The reset options that hold on for autoresets, such as `group_size`.
    """

    seed: int
    resets: int = 0
    position: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> int:
        """The key of the noise of the present episodes."""
        return F.derive_seed(self.seed, "reset", self.resets) if self.resets else self.seed

    def next(self) -> Course:
        """The course after one more reset without a seed."""
        return replace(self, resets=self.resets + 1)

    def holding(self, options: Mapping[str, Any]) -> Course:
        """The course with other options."""
        return replace(self, options=dict(options))

    def past(self, prompts: int) -> Course:
        """The course after `prompts` more prompts were taken."""
        return replace(self, position=self.position + prompts)
