"""FlowDPPO: the policy gradient inside a trust region that is measured by the exact KL."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.base import Agent
from unirl_env.agents.config import AgentConfig, Loss
from unirl_env.agents.shards import Rows
from unirl_env.errors import ConfigError
from unirl_env.functional import SDEStep

__all__ = ["FlowDPPO", "FlowDPPOConfig"]


def image_loss(rows: Rows, new: SDEStep, config: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """`F.flow_dppo_loss` with the configuration's threshold."""
    return F.flow_dppo_loss(
        new.log_prob,
        rows.old_log_prob,
        new.mean,
        rows.old_mean,
        new.std,
        rows.advantages,
        kl_threshold=config.kl_threshold,
        mask=rows.mask,
        denominator=rows.denominator,
    )


class FlowDPPOConfig(AgentConfig):
    """Settings of `FlowDPPO`.

    Knob: `kl_threshold`, the KL (mean over elements) from which a transition stops pushing further away.
    `F.nats_to_mean` turns nats into it.

    Reference:
        Flow-DPPO (arXiv 2606.11025).
    """

    losses = {"image": Loss(image_loss, needs_mean=True)}

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or FlowDPPO)
        self.kl_threshold = 1e-5

    def validate(self) -> None:
        """Check the threshold, too."""
        super().validate()
        if not self.kl_threshold > 0:
            raise ConfigError(f"`kl_threshold` must be positive, got {self.kl_threshold}; try 1e-5.")

    def thresholds(self) -> dict[str, tuple[float, str]]:
        """The trust region's border."""
        return {"kl_threshold": (self.kl_threshold, "kl")}


class FlowDPPO(Agent):
    """Divergence-bounded policy optimization for flow models; see `FlowDPPOConfig`."""

    @classmethod
    def get_default_config(cls) -> FlowDPPOConfig:
        """The settings that belong to this agent."""
        return FlowDPPOConfig()
