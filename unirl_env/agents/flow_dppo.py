"""FlowDPPO: the policy gradient inside a trust region that is measured by a divergence."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.agent import Agent
from unirl_env.agents.config import AgentConfig
from unirl_env.agents.loss import Context, Loss, check_either, per_element, threshold
from unirl_env.agents.rows import Rows
from unirl_env.episode import Phase
from unirl_env.functional import Metric, SDEStep, TokenStep
from unirl_env.settings import Settings, setting

KL_THRESHOLD = 1e-5
"""The published threshold on latents, for SD3 at 512 x 512: 0.66 nats."""


def latent_loss(rows: Rows, new: SDEStep, context: Context) -> tuple[Tensor, dict[str, Metric]]:
    """`F.flow_dppo_loss` with the configuration's threshold."""
    config = context.config
    assert rows.old_mean is not None  # its `Loss` needs them
    return F.flow_dppo_loss(
        new.log_prob,
        rows.old_log_prob,
        new.mean,
        rows.old_mean,
        new.std,
        rows.advantages,
        kl_threshold=config.kl_border(rows.action[0].numel()),
        direction=config.direction,
        max_log_ratio=config.max_log_ratio,
        mask=rows.mask,
        denominator=rows.denominator,
    )


def token_loss(rows: Rows, new: TokenStep, context: Context) -> tuple[Tensor, dict[str, Metric]]:
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


@dataclass
class FlowDPPOKnobs(Settings):
    """The divergence from which a transition no longer pushes its ratio further from 1.

    `F.flow_dppo_loss` says how that differs from pushing the policy further away. Of the first two, one may
    be given.
    """

    kl_threshold: float | None = setting(None, above=0, hint=f"{KL_THRESHOLD:g}")
    """The exact KL on latents, as a mean over the D elements of an action. Without this and the next it is
    1e-5, published for SD3 at 512 x 512 (0.66 nats)."""
    kl_threshold_nats: float | None = setting(None, above=0, hint=f"{KL_THRESHOLD * 65536:g}")
    """That of the joint policies, D times as much: the same at any size."""
    direction: str = setting("published", choices=("published", "exact"))
    """Which latents beyond it drop out: as `published`, those whose ratio the update would push further from
    1; by the `exact` rule, those whose KL it would raise."""
    token_threshold: float = setting(0.15, above=0, most=inf)
    """The divergence on tokens, where it is DPPO: 0.15 is usual for `tv`, 0.05 for `kl`."""
    token_divergence: str = setting("tv", choices=("tv", "kl"))
    """Which one it is, of the two-cell partition {the token, all others}."""

    def check(self, prefix: str = "") -> None:
        """Refuse one threshold in two units, too."""
        super().check(prefix)
        check_either(self, "kl_threshold", prefix)


class FlowDPPOConfig(AgentConfig):
    """Settings of `FlowDPPO`; its knobs are those of `FlowDPPOKnobs`.

    Reference:
        Flow-DPPO (arXiv 2606.11025); DPPO (2602.04879).
    """

    losses = {
        "latents": Loss(latent_loss, needs={"mean"}, skips_idle=True),
        "tokens": Loss(token_loss, skips_idle=True),
    }
    knobs = FlowDPPOKnobs
    engine_anchor = "rollout"  # DPPO bounds the divergence from the policy that sampled.

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or FlowDPPO)

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

    config_class = FlowDPPOConfig
