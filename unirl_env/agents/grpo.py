"""GRPO: the clipped surrogate of PPO with advantages from groups; on latents, Flow-GRPO."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.agent import Agent
from unirl_env.agents.config import AgentConfig
from unirl_env.agents.loss import Context, Loss, check_either, per_element, threshold
from unirl_env.agents.rows import Rows
from unirl_env.episode import Phase
from unirl_env.errors import ConfigError
from unirl_env.functional import Metric, SDEStep, TokenStep
from unirl_env.settings import Settings, setting

CLIP = 1e-4
"""The published range on latents, for SD3 at 512 x 512: 6.6 nats."""


def latent_loss(rows: Rows, new: SDEStep, context: Context) -> tuple[Tensor, dict[str, Metric]]:
    """`F.grpo_loss` with the configuration's clip range."""
    config = context.config
    low, high = config.clip_range(rows.action[0].numel())
    return F.grpo_loss(
        new.log_prob,
        rows.old_log_prob,
        rows.advantages,
        clip_low=low,
        clip_high=high,
        max_log_ratio=config.max_log_ratio,
        mask=rows.mask,
        denominator=rows.denominator,
    )


def token_loss(rows: Rows, new: TokenStep, context: Context) -> tuple[Tensor, dict[str, Metric]]:
    """`F.grpo_loss` with the configuration's clip range for tokens."""
    config = context.config
    return F.grpo_loss(
        new.log_prob,
        rows.old_log_prob,
        rows.weighted,
        clip_low=config.token_clip_low,
        clip_high=config.token_clip_high,
        dual_clip=config.dual_clip,
        max_log_ratio=config.max_log_ratio,
        mask=rows.mask,
        denominator=rows.denominator,
    )


def fall(config: Any, name: str, elements: int, default: float) -> float:
    """How far a ratio of actions of D = `elements` elements may fall, given in either unit (`per_element`).

    Raises:
        ConfigError: If the range in nats is too wide for so few elements.
    """
    low = per_element(config, name, elements, default)
    if not low < 1:
        raise ConfigError(
            f"`{name}_nats` must be less than the {elements} elements of an action, got "
            f"{getattr(config, f'{name}_nats')}: the ratio cannot fall below 0; try {0.1 * elements:g}."
        )
    return low


def token_thresholds(config: Any) -> dict[str, tuple[float, str]]:
    """Both ends of the clip range of tokens, as `AgentConfig.thresholds` has them."""
    low, high = config.token_clip_low, config.token_clip_high
    return {
        "token_clip_low": (low, "log_prob"),
        "token_clip_high": (low if high is None else high, "log_prob"),
    }


@dataclass
class TokenClipKnobs(Settings):
    """How far ratios of tokens may move."""

    token_clip_low: float = setting(0.2, above=0, below=1)
    """How far the ratio of a token may fall."""
    token_clip_high: float | None = setting(None, above=0, most=inf)
    """How far it may rise; null for the same. DAPO's clip-higher is 0.28."""
    dual_clip: float | None = setting(None, above=1, most=inf, hint="3.0")
    """A bound on ratios of tokens that have run away under negative advantages; null for none."""


@dataclass
class GRPOKnobs(TokenClipKnobs):
    """How far ratios may move.

    Log-probs of latents are means over the D elements of an action, so that ratios are D-th roots of
    likelihood ratios, and a range means something else at every size. In nats it is D times as much: the same
    trust region at any size. Of each pair one may be given. Nats are taken to first order: with n of them,
    the joint likelihood ratio may fall by -D ln(1 - n / D) and rise by D ln(1 + n / D).
    """

    clip_low: float | None = setting(None, above=0, below=1, hint=f"{CLIP:g}")
    """How far the ratio of latents may fall. Without this and the next it is 1e-4, published for SD3 at
    512 x 512 (6.6 nats)."""
    clip_low_nats: float | None = setting(None, above=0, hint=f"{CLIP * 65536:g}")
    """The same in nats of the whole action."""
    clip_high: float | None = setting(None, above=0, hint=f"{CLIP:g}")
    """How far it may rise; without this and the next as far as it may fall."""
    clip_high_nats: float | None = setting(None, above=0, hint=f"{CLIP * 65536:g}")
    """The same in nats of the whole action."""

    def check(self, prefix: str = "") -> None:
        """Refuse one bound in two units, too."""
        super().check(prefix)
        for name in ("clip_low", "clip_high"):
            check_either(self, name, prefix)


class GRPOConfig(AgentConfig):
    """Settings of `GRPO`; its knobs are those of `GRPOKnobs`.

    Dr. GRPO is `aggregate="horizon"` with `advantage_scale="none"`.

    Reference:
        Flow-GRPO (arXiv 2505.05470); GRPO (2402.03300); DAPO (2503.14476); Dr. GRPO (2503.20783).
    """

    losses = {
        "latents": Loss(latent_loss, skips_idle=True),
        "tokens": Loss(token_loss, skips_idle=True),
        "continuous": Loss(token_loss, skips_idle=True),
    }
    knobs = GRPOKnobs

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or GRPO)

    def clip_range(self, elements: int) -> tuple[float, float]:
        """How far the ratio of an action of `elements` latent elements may fall and rise.

        Raises:
            ConfigError: If `clip_low_nats` is too wide for so few elements.
        """
        low = fall(self, "clip_low", elements, CLIP)
        return low, per_element(self, "clip_high", elements, low)

    def thresholds(self, phase: Phase) -> dict[str, tuple[float, str]]:
        """Both ends of the clip range."""
        if phase.kind == "latents":
            elements = phase.elements
            low, high = self.clip_range(elements)
            return threshold(self, "clip_low", elements, low, "log_prob") | threshold(
                self, "clip_high", elements, high, "log_prob"
            )
        return token_thresholds(self)


class GRPO(Agent):
    """Group relative policy optimization; see `GRPOConfig`."""

    config_class = GRPOConfig


class TempFlowGRPOConfig(GRPOConfig):
    """GRPO whose steps of latents weigh by their noise (`step_weights` is `"noise"`).

    Reference:
        TempFlow-GRPO (arXiv 2508.04324), the noise-aware weighting.
    """

    own_step_weights = "noise"

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or TempFlowGRPO)


class TempFlowGRPO(Agent):
    """GRPO with noise-aware weights of steps; see `TempFlowGRPOConfig`."""

    config_class = TempFlowGRPOConfig
