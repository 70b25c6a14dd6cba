"""Environments that are pickled and copied by their constructor's arguments and their snapshot."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym

from unirl_env.arguments.copies import KeepsArguments, carried, carried_spec

__all__ = ["SPACES", "BySnapshot", "draws_of", "set_draws"]

SPACES = ("single_observation_space", "single_action_space", "observation_space", "action_space")
Draws = tuple[Any, dict[Any, "Draws"]]


class BySnapshot(KeepsArguments):
    """A vector environment that is pickled and copied at any moment, and goes on as if nothing had happened.

    A pickle holds what the constructor was given, the prompts as they were read, and the snapshot: an
    environment in another process is made anew and set there. What a model loads is no part of it; copies in
    the same process share it. A state that `snapshot` does not hold is lost on the way.
    """

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
        self.__init__(*state["args"], **state["options"])
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
