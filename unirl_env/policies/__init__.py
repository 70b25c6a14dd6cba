"""Policies: the trained half of a model, in plain torch and as RLlib modules. Each loads on first use."""

from typing import TYPE_CHECKING

from unirl_env.registry import lazily

if TYPE_CHECKING:
    from unirl_env.policies.actor import Actor, LoRAConfig
    from unirl_env.policies.heads import ActionHead, Head, LatentHead, TokenHead
    from unirl_env.policies.rl_module import GenerativePolicy
    from unirl_env.policies.stepping import act_by_phase

__all__ = [
    "ActionHead",
    "Actor",
    "GenerativePolicy",
    "Head",
    "LatentHead",
    "LoRAConfig",
    "TokenHead",
    "act_by_phase",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazily(__name__)
