"""The policy of any environment whose actions a head can draw, as RLlib's module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.rllib.core.columns import Columns
from torch import Tensor

from unirl_env.policies.head_actor import HeadActor
from unirl_env.policies.rl_module import GenerativePolicy
from unirl_env.registry import Registry

__all__ = ["HeadPolicy"]


class HeadPolicy(GenerativePolicy):
    """A network with a head, as a policy over the next action; `model` may be the path of any class."""

    models = Registry("model")
    actor_class = HeadActor

    def act(self, obs: Mapping[str, Tensor], draws: Tensor | None) -> Any:
        """Draw the next actions `[N, ...]`; without draws, the likeliest ones."""
        return self.actor.act(obs, draws)

    def _forward_exploration(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Draw: `obs` and `draws` in, RLlib's action columns and `entropy` out."""
        step = self.act(batch[Columns.OBS], batch["draws"])
        return {Columns.ACTIONS: step[0], Columns.ACTION_LOGP: step.log_prob, "entropy": step.entropy}

    def _forward_inference(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """The likeliest next actions."""
        return {Columns.ACTIONS: self.act(batch[Columns.OBS], None)[0]}
