"""Rollouts: who plays the episodes, and how new weights reach the players. Each loads on first use."""

from typing import TYPE_CHECKING

from unirl_env.registry import lazily

if TYPE_CHECKING:
    from unirl_env.rollouts.callbacks import PlayedEpisode
    from unirl_env.rollouts.engines.local import LocalEngine
    from unirl_env.rollouts.hybrid import HybridRollout
    from unirl_env.rollouts.local import LocalRollout
    from unirl_env.rollouts.tokens import TokenRollout

__all__ = ["HybridRollout", "LocalEngine", "LocalRollout", "PlayedEpisode", "TokenRollout"]

_HOMES = {
    "HybridRollout": "hybrid",
    "LocalEngine": "engines.local",
    "LocalRollout": "local",
    "PlayedEpisode": "callbacks",
    "TokenRollout": "tokens",
}

__getattr__, __dir__ = lazily(__name__, _HOMES)
