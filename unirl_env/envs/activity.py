"""What the episodes of a batch do: write, denoise, or one after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from unirl_env.envs.groups import Groups
from unirl_env.types import Sample


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
    def prepared(self, rows: np.ndarray, groups: Groups, options: Mapping[str, Any]) -> Any:
        """What `begin` needs to start the episodes at `rows` as `groups` has them."""

    @abstractmethod
    def begin(self, rows: np.ndarray, prepared: Any) -> None:
        """Start the episodes at `rows`; the first time, all of them."""

    @abstractmethod
    def checked(self, actions: Any, active: np.ndarray, groups: Groups) -> Any:
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
