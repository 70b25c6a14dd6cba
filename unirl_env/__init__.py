"""Gymnasium environments and RLlib agents for reinforcement-learning post-training of generative models.

Importing this package registers the environment ids and loads nothing heavy.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

from unirl_env.registry import lazily
from unirl_env.worlds.ids import register_ids
from unirl_env.worlds.registration import register

if TYPE_CHECKING:
    from unirl_env import (
        agents,
        envs,
        errors,
        functional,
        models,
        modes,
        monitor,
        policies,
        rewards,
        rollouts,
        types,
        worlds,
        wrappers,
    )

__all__ = [
    "__version__",
    "agents",
    "envs",
    "errors",
    "functional",
    "models",
    "modes",
    "monitor",
    "policies",
    "register",
    "rewards",
    "rollouts",
    "types",
    "worlds",
    "wrappers",
]

register_ids()

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazily(__name__)
