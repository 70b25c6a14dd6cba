"""The state of a vector environment as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from unirl_env.arguments.values import is_whole
from unirl_env.envs.course import Course
from unirl_env.envs.roster import Roster
from unirl_env.errors import ContractError

__all__ = ["Snapshot"]


@dataclass(frozen=True)
class Snapshot:
    """The whole state of a vector environment at one moment; restore it as often as you like.

    What it holds is shared with the environment, which changes nothing of it in place.

    Attributes:
        made_by: What an environment that goes on from it must have in common with the one that made it:
            class, model, spaces, steps and limits, as plain values by their names.
    """

    roster: Roster
    course: Course
    done: np.ndarray
    model_state: dict[str, Any]
    made_by: Mapping[str, Any]


def facts_of(env: Any) -> dict[str, Any]:
    """`Snapshot.made_by` of a vector environment."""
    return {"class": f"{type(env).__module__}.{type(env).__qualname__}", **env._facts()}


def require_like(snapshot: Snapshot, env: Any) -> None:
    """Refuse to let a vector environment go on from a snapshot that another kind of environment made.

    Raises:
        ContractError: Naming what differs: the class, the model, the spaces, the steps or the limits.
    """
    if not isinstance(snapshot, Snapshot):
        raise ContractError(
            f"`snapshot` must be what `env.snapshot()` returned, got {type(snapshot).__name__}."
        )
    if len(snapshot.roster) != env.num_envs:
        raise ContractError(
            f"`snapshot` must hold {env.num_envs} episodes, got {len(snapshot.roster)}; "
            "make an environment of the same `num_envs`."
        )
    made_by = facts_of(env)
    differing = [
        f"{_shown(made_by, name)} (got {_shown(snapshot.made_by, name)})"
        for name in dict.fromkeys([*made_by, *snapshot.made_by])
        if snapshot.made_by.get(name) != made_by.get(name)
    ]
    if differing:
        raise ContractError(
            f"`snapshot` must hold {', '.join(differing[:4])}; restore it in an environment like its own."
        )


def _shown(facts: Mapping[str, Any], name: str) -> str:
    value = facts.get(name)
    shown = f"{value} {name}" if is_whole(value) else f"{name} {'none' if value is None else value}"
    return shown if len(shown) <= 110 else f"{shown[:110]}..."
