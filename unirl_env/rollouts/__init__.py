"""Rollouts: who plays the episodes, and how new weights reach the players. Each loads on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__all__}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
