"""What plays one phase of a batch of episodes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from unirl_env.episode import Phase
from unirl_env.rollouts.live_episodes import LiveEpisodes
from unirl_env.rollouts.request import RolloutRequest

__all__ = ["Driver", "distinct"]


class Driver(ABC):
    """Acts in one phase of each episode, until none is in it any more.

    Attributes:
        truncates: Whether a length limit may end episodes here.
    """

    truncates: ClassVar[bool] = True

    @abstractmethod
    def play(self, live: LiveEpisodes, request: RolloutRequest) -> Phase | None:
        """Step `live` through the phase.

        Args:
            live: The episodes; those that have ended, or never come to the phase, are left as they are.
            request: What is asked for: what is to be recorded, and at which temperature.

        Returns:
            What was done, of all B episodes; None if nothing was recorded.
        """

    def check(self, request: RolloutRequest) -> None:  # noqa: B027  # most play whatever they are asked
        """Refuse a request that cannot be played, before anything is.

        Raises:
            UniRLError: Saying why.
        """

    def load_weights(self, version: int) -> None:  # noqa: B027  # most play with the actor itself
        """Take over the policy's present weights under the name `version`."""

    def close(self) -> None:  # noqa: B027  # most have nothing to give back
        """Give back what is held."""


def distinct(keys: Sequence[Hashable]) -> tuple[Tensor, Tensor]:
    """The first of B episodes with each key `[P]`, and for each episode which of them it shares `[B]`."""
    places: dict[Hashable, int] = {}
    first, row = [], []
    for i, key in enumerate(keys):
        if key not in places:
            places[key] = len(first)
            first.append(i)
        row.append(places[key])
    return torch.tensor(first), torch.tensor(row)
