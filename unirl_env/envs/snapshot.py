"""The state of a vector environment as one value."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from unirl_env.arguments.copies import KeepsArguments, carried, carried_spec
from unirl_env.arguments.values import is_whole
from unirl_env.envs.groups import Groups, ResetState
from unirl_env.errors import ContractError

SPACES = ("single_observation_space", "single_action_space", "observation_space", "action_space")
Draws = tuple[Any, dict[Any, "Draws"]]


@dataclass(frozen=True)
class Snapshot:
    """The whole state of a vector environment at one moment; restore it as often as you like.

    What it holds is shared with the environment, which changes nothing of it in place.

    Attributes:
        made_by: What an environment that goes on from it must have in common with the one that made it:
            class, model, spaces, steps and limits, as plain values by their names.
    """

    groups: Groups
    reset_state: ResetState
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
    if len(snapshot.groups) != env.num_envs:
        raise ContractError(
            f"`snapshot` must hold {env.num_envs} episodes, got {len(snapshot.groups)}; "
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


class BySnapshot(KeepsArguments):
    """A vector environment that is pickled and copied at any moment, and goes on as if nothing had happened.

    A pickle holds what the constructor was given, the prompts as they were read, and the snapshot: an
    environment in another process is made anew and set there. What a model loads is no part of it; copies in
    the same process share it. A state that `snapshot` does not hold is lost on the way.
    """

    prompts: Any
    started: bool
    snapshot: Callable[[], Snapshot]
    restore: Callable[[Snapshot], Any]

    def __getstate__(self) -> dict[str, Any]:
        args, options = self._arguments
        # The prompts as they were read: a file may have changed since, or lie on another machine.
        read = {"prompts": self.prompts} if "prompts" in options else {}
        return {
            "args": tuple(carried({f"argument {i}": arg for i, arg in enumerate(args)}).values()),
            "options": {**carried(options), **read},
            "snapshot": self.snapshot() if self.started else None,
            "random": (self._np_random, self._np_random_seed),
            "draws": {name: draws_of(getattr(self, name)) for name in SPACES},
            "spec": carried_spec(self.spec),
            "closed": self.closed,
            "info_objects": self.info_objects,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._arguments = state["args"], state["options"]
        type(self).__init__(self, *state["args"], **state["options"])
        if state["snapshot"] is not None:
            self.restore(state["snapshot"])
        for name, draws in state["draws"].items():
            set_draws(getattr(self, name), draws)
        self._np_random, self._np_random_seed = state["random"]
        self.spec, self.closed = state["spec"], state["closed"]
        self.info_objects = state["info_objects"]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        memo[id(self)] = twin = type(self).__new__(type(self))
        state = self.__getstate__()
        # Immutable, both of them.
        memo[id(self.prompts)], snapshot = self.prompts, state.pop("snapshot")
        twin.__setstate__({**copy.deepcopy(state, memo), "snapshot": snapshot})
        return twin


def draws_of(space: gym.Space) -> Draws:
    """The generators that a space samples from, its own and those of its parts."""
    parts = _parts(space)
    return space._np_random, {name: draws_of(part) for name, part in parts.items()}


def set_draws(space: gym.Space, draws: Draws) -> None:
    """Let a space sample on as the one did that `draws` were taken from."""
    space._np_random, parts = draws
    for name, part in _parts(space).items():
        set_draws(part, parts[name])


def _parts(space: gym.Space) -> dict[Any, gym.Space]:
    if isinstance(space, gym.spaces.Dict):
        return dict(space.spaces)
    return dict(enumerate(space.spaces)) if isinstance(space, gym.spaces.Tuple) else {}
