"""Policies: the trained half of a model, in plain torch and as RLlib modules. Each loads on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unirl_env.policies.actor import FlowActor, LoRAConfig
    from unirl_env.policies.heads import Head
    from unirl_env.policies.hybrid_actor import HybridActor
    from unirl_env.policies.rl_module import GenerativePolicy
    from unirl_env.policies.token_actor import TokenActor

__all__ = ["FlowActor", "GenerativePolicy", "Head", "HybridActor", "LoRAConfig", "TokenActor"]

_HOMES = {
    "FlowActor": "actor",
    "GenerativePolicy": "rl_module",
    "Head": "heads",
    "HybridActor": "hybrid_actor",
    "LoRAConfig": "actor",
    "TokenActor": "token_actor",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__all__}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
