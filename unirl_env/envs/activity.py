"""What the episodes of a batch do: write, denoise, or one after the other; and the environment around it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from unirl_env.envs.base import GenerativeVectorEnv
from unirl_env.envs.roster import Roster
from unirl_env.types import Sample

__all__ = ["Activity", "ActivityVectorEnv"]


class Activity(ABC):
    """The state of B episodes in one phase of generation, and how actions change it.

    What can fail comes first and changes nothing (`prepared`, `checked`); what changes the state (`begin`,
    `advance`, `select`) takes what those returned. So activities can be put together, and a step
    that one of them refuses does not count for the others.

    Attributes:
        action_space: Of one episode.
        observation_spaces: Name of each entry of one episode's observation to its space.
    """

    action_space: spaces.Space
    observation_spaces: Mapping[str, spaces.Space]

    @abstractmethod
    def prepared(self, rows: np.ndarray, roster: Roster, options: Mapping[str, Any]) -> Any:
        """What `begin` needs to start the episodes at `rows` as `roster` has them."""

    @abstractmethod
    def begin(self, rows: np.ndarray, prepared: Any) -> None:
        """Start the episodes at `rows`; the first time, all of them."""

    @abstractmethod
    def checked(self, actions: Any, active: np.ndarray, roster: Roster) -> Any:
        """What `advance` needs to apply the actions of the `active` `[B]` episodes."""

    @abstractmethod
    def advance(self, checked: Any) -> None:
        """Apply the actions."""

    @abstractmethod
    def ended(self) -> tuple[np.ndarray, np.ndarray]:
        """Which episodes have (terminated, truncated), each bool `[B]` and the caller's own."""

    @abstractmethod
    def observe(self) -> dict[str, Any]:
        """The observation in the chosen backend."""

    @abstractmethod
    def finish(self, rows: np.ndarray) -> list[Sample]:
        """The samples of the finished episodes at `rows`."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that changes, as immutable values."""

    @abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """What another activity must have in common with this one to go on from its state.

        Plain values by the names that an error calls them; the spaces count anyway.
        """

    @abstractmethod
    def select(self, state: Mapping[str, Any], rows: np.ndarray) -> None:
        """Become `state`, with episode i continuing the state's episode `rows[i]`."""


class ActivityVectorEnv(GenerativeVectorEnv):
    """A vector environment whose episodes do what an `Activity` says.

    A mode makes its activity in its constructor, and hands it over to `_play`.
    """

    _activity: Activity

    def _play(self, activity: Activity) -> None:
        """Take the activity and its spaces."""
        self._activity = activity
        self.single_action_space = activity.action_space
        self.single_observation_space = spaces.Dict(dict(activity.observation_spaces))
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def _begin(self, rows: np.ndarray, roster: Roster, options: Mapping[str, Any]) -> None:
        self._activity.begin(rows, self._activity.prepared(rows, roster, options))

    def _advance(self, actions: Any, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self._activity.advance(self._activity.checked(actions, active, self._roster))
        return self._activity.ended()

    def _observe(self) -> dict[str, Any]:
        return self._activity.observe()

    def _finish(self, rows: np.ndarray) -> list[Sample]:
        return self._activity.finish(rows)

    def _model_state(self) -> dict[str, Any]:
        return self._activity.state()

    def _facts(self) -> dict[str, Any]:
        seen = self._activity.observation_spaces.items()
        return {
            "actions": str(self._activity.action_space),
            **{f"observation `{name}`": f"{space.dtype} {list(space.shape)}" for name, space in seen},
            **self._activity.facts(),
        }

    def _select_model_state(self, state: dict[str, Any], rows: np.ndarray) -> None:
        self._activity.select(state, rows)
