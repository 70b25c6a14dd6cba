"""What plays one phase of a batch of episodes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from unirl_env.episode import Phase
from unirl_env.rollouts.live_episodes import LiveEpisodes
from unirl_env.rollouts.request import RolloutRequest

__all__ = ["Driver"]


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
