"""FlowDPPO: the policy gradient inside a trust region that is measured by a divergence."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.base import Agent
from unirl_env.agents.config import AgentConfig, Loss
from unirl_env.agents.rows import Rows
from unirl_env.errors import ConfigError
from unirl_env.functional import SDEStep, TokenStep

__all__ = ["FlowDPPO", "FlowDPPOConfig"]


def latent_loss(rows: Rows, new: SDEStep, config: Any) -> tuple[Tensor, dict[str, Tensor]]:
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


def token_loss(rows: Rows, new: TokenStep, config: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """`F.dppo_loss` with the configuration's threshold for tokens."""
    return F.dppo_loss(
        new.log_prob,
        rows.old_log_prob,
        rows.weighted,
        threshold=config.token_threshold,
        divergence=config.token_divergence,
        mask=rows.mask,
        denominator=rows.denominator,
    )


class FlowDPPOConfig(AgentConfig):
    """Settings of `FlowDPPO`.

    Knob on latents: `kl_threshold`, the exact KL (mean over elements) from which a transition stops pushing
    further away. `F.nats_to_mean` turns nats into it.

    Knobs on tokens, where it is DPPO: `token_divergence`, `"tv"` or `"kl"` of the two-cell partition {the
    token, all others}, and `token_threshold`, from which a token stops pushing further away: 0.15 is
    usual for `"tv"`, 0.05 for `"kl"`.

    Reference:
        Flow-DPPO (arXiv 2606.11025); DPPO (2602.04879).
    """

    losses = {"latents": Loss(latent_loss, needs_mean=True), "tokens": Loss(token_loss)}
    engine_anchor = "rollout"  # DPPO bounds the divergence from the policy that sampled.

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or FlowDPPO)
        self.kl_threshold = 1e-5
        self.token_threshold = 0.15
        self.token_divergence = "tv"

    def validate(self) -> None:
        """Check the thresholds, too."""
        super().validate()
        for name, usual in (("kl_threshold", 1e-5), ("token_threshold", 0.15)):
            if not getattr(self, name) > 0:
                raise ConfigError(f"`{name}` must be positive, got {getattr(self, name)}; try {usual:g}.")
        if self.token_divergence not in ("tv", "kl"):
            raise ConfigError(f"`token_divergence` must be 'tv' or 'kl', got {self.token_divergence!r}.")

    def thresholds(self, kind: str) -> dict[str, tuple[float, str]]:
        """The trust region's border on latents; on tokens it lies far above any rounding."""
        return {"kl_threshold": (self.kl_threshold, "kl")} if kind == "latents" else {}


class FlowDPPO(Agent):
    """Divergence-bounded policy optimization for flow and language models; see `FlowDPPOConfig`."""

    @classmethod
    def get_default_config(cls) -> FlowDPPOConfig:
        """The settings that belong to this agent."""
        return FlowDPPOConfig()
