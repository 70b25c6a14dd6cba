"""FlowDPPO: the policy gradient inside a trust region that is measured by a divergence."""

from __future__ import annotations

from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.base import Agent
from unirl_env.agents.config import AgentConfig
from unirl_env.agents.loss import Context, Loss
from unirl_env.agents.rows import Rows
from unirl_env.agents.units import check_either, per_element, threshold
from unirl_env.episode import Phase
from unirl_env.errors import ConfigError
from unirl_env.functional import SDEStep, TokenStep

__all__ = ["FlowDPPO", "FlowDPPOConfig"]

KL_THRESHOLD = 1e-5
"""The published threshold on latents, for SD3 at 512 x 512: 0.66 nats."""


def latent_loss(rows: Rows, new: SDEStep, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
    """`F.flow_dppo_loss` with the configuration's threshold."""
    config = context.config
    return F.flow_dppo_loss(
        new.log_prob,
        rows.old_log_prob,
        new.mean,
        rows.old_mean,
        new.std,
        rows.advantages,
        kl_threshold=config.kl_border(rows.action[0].numel()),
        max_log_ratio=config.max_log_ratio,
        mask=rows.mask,
        denominator=rows.denominator,
    )


def token_loss(rows: Rows, new: TokenStep, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
    """`F.dppo_loss` with the configuration's threshold for tokens."""
    config = context.config
    return F.dppo_loss(
        new.log_prob,
        rows.old_log_prob,
        rows.weighted,
        threshold=config.token_threshold,
        divergence=config.token_divergence,
        max_log_ratio=config.max_log_ratio,
        mask=rows.mask,
        denominator=rows.denominator,
    )


class FlowDPPOConfig(AgentConfig):
    """Settings of `FlowDPPO`.

    Knob on latents: the exact KL from which a transition no longer pushes its ratio further from 1
    (`F.flow_dppo_loss` says how that differs from pushing the policy further away). `kl_threshold_nats` is
    that of the joint policies, the same at any size; `kl_threshold` is a mean over the D elements of an
    action, D times less. One of them may be given; without any it is `kl_threshold` 1e-5, published for SD3
    at 512 x 512 (0.66 nats).

    Knobs on tokens, where it is DPPO: `token_divergence`, `"tv"` or `"kl"` of the two-cell partition {the
    token, all others}, and `token_threshold`, from which a token stops pushing further away: 0.15 is
    usual for `"tv"`, 0.05 for `"kl"`.

    Reference:
        Flow-DPPO (arXiv 2606.11025); DPPO (2602.04879).
    """

    losses = {
        "latents": Loss(latent_loss, needs={"mean"}, skips_idle=True),
        "tokens": Loss(token_loss, skips_idle=True),
    }
    engine_anchor = "rollout"  # DPPO bounds the divergence from the policy that sampled.

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or FlowDPPO)
        self.kl_threshold: float | None = None
        self.kl_threshold_nats: float | None = None
        self.token_threshold = 0.15
        self.token_divergence = "tv"

    def validate(self) -> None:
        """Check the thresholds, too."""
        super().validate()
        check_either(self, "kl_threshold", KL_THRESHOLD)
        if not self.token_threshold > 0:
            raise ConfigError(f"`token_threshold` must be positive, got {self.token_threshold}; try 0.15.")
        if self.token_divergence not in ("tv", "kl"):
            raise ConfigError(f"`token_divergence` must be 'tv' or 'kl', got {self.token_divergence!r}.")

    def kl_border(self, elements: int) -> float:
        """The mean-reduced threshold for actions of `elements` latent elements."""
        return per_element(self, "kl_threshold", elements, KL_THRESHOLD)

    def thresholds(self, phase: Phase) -> dict[str, tuple[float, str]]:
        """The trust region's border on latents; on tokens it lies far above any rounding."""
        if phase.kind != "latents":
            return {}
        elements = phase.elements
        return threshold(self, "kl_threshold", elements, self.kl_border(elements), "kl")


class FlowDPPO(Agent):
    """Divergence-bounded policy optimization for flow and language models; see `FlowDPPOConfig`."""

    @classmethod
    def get_default_config(cls) -> FlowDPPOConfig:
        """The settings that belong to this agent."""
        return FlowDPPOConfig()
