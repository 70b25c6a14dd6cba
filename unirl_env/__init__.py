"""Gymnasium environments and RLlib agents for reinforcement-learning post-training of generative models.

Importing this package registers the environment ids and loads nothing heavy.
"""

from importlib import import_module as _import_module

__version__ = "0.1.0"

from unirl_env.worlds.ids import register_ids as _register_ids
from unirl_env.worlds.registration import register

_SUBMODULES = (
    "agents",
    "envs",
    "errors",
    "functional",
    "models",
    "modes",
    "monitor",
    "policies",
    "rewards",
    "rollouts",
    "types",
    "worlds",
    "wrappers",
)

__all__ = ["__version__", "register", *_SUBMODULES]

_register_ids()


def __getattr__(name: str):
    if name in _SUBMODULES:
        return _import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__all__}")
