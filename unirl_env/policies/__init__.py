"""Policies: the trained half of a model, in plain torch and as RLlib modules. Each loads on first use."""

from typing import TYPE_CHECKING

from unirl_env.registry import lazily

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

__getattr__, __dir__ = lazily(__name__, _HOMES)
