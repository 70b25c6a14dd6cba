"""Rollouts: who plays the episodes, and how new weights reach the players. Each loads on first use."""

from typing import TYPE_CHECKING

from unirl_env.registry import lazily

if TYPE_CHECKING:
    from unirl_env.rollouts.callbacks import PlayedEpisode
    from unirl_env.rollouts.driver import Driver, RolloutRequest
    from unirl_env.rollouts.drivers.tokens import TextDriver
    from unirl_env.rollouts.engines.local import LocalEngine
    from unirl_env.rollouts.play import Rollout

__all__ = ["Driver", "LocalEngine", "PlayedEpisode", "Rollout", "RolloutRequest", "TextDriver"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazily(__name__)
