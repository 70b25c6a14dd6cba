"""The state of a vector environment as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from unirl_env.envs.course import Course
from unirl_env.envs.roster import Roster

__all__ = ["Snapshot"]


@dataclass(frozen=True)
class Snapshot:
    """The whole state of a vector environment at one moment; restore it as often as you like.

    What it holds is shared with the environment, which changes nothing of it in place.
    """

    roster: Roster
    course: Course
    done: np.ndarray
    model_state: dict[str, Any]
