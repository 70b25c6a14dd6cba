"""GRPO: the clipped surrogate of PPO with advantages from groups; on latents, Flow-GRPO."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.base import Agent
from unirl_env.agents.config import AgentConfig, Loss
from unirl_env.agents.rows import Rows
from unirl_env.agents.units import check_either, per_element, threshold
from unirl_env.episode import Phase
from unirl_env.errors import ConfigError
from unirl_env.functional import SDEStep, TokenStep

__all__ = ["GRPO", "GRPOConfig"]

CLIP = 1e-4
"""The published range on latents, for SD3 at 512 x 512: 6.6 nats."""


def latent_loss(rows: Rows, new: SDEStep, config: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """`F.grpo_loss` with the configuration's clip range."""
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


def token_loss(rows: Rows, new: TokenStep, config: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """`F.grpo_loss` with the configuration's clip range for tokens."""
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


class GRPOConfig(AgentConfig):
    """Settings of `GRPO`.

    Knobs on latents: how far the ratio may fall and rise, `clip_low` and `clip_high` (None for the same).
    Log-probs of latents are means over the D elements of an action, so that ratios are D-th roots of
    likelihood ratios, and a range means something else at every size. `clip_low_nats` and `clip_high_nats`
    say it in nats, D times as much: the same trust region at any size. Of each pair one may be given; without
    any the range is 1e-4, published for SD3 at 512 x 512 (6.6 nats). Nats are taken to first order: with n
    of them, the joint likelihood ratio may fall by -D ln(1 - n / D) and rise by D ln(1 + n / D).

    Knobs on tokens: `token_clip_low` and `token_clip_high` (None for the same; DAPO's clip-higher is 0.28),
    and `dual_clip` (above 1), a bound for ratios that have run away under negative advantages. Dr. GRPO is
    `aggregate="horizon"` with `advantage_scale="none"`.

    Reference:
        Flow-GRPO (arXiv 2505.05470); GRPO (2402.03300); DAPO (2503.14476); Dr. GRPO (2503.20783).
    """

    losses = {"latents": Loss(latent_loss), "tokens": Loss(token_loss), "continuous": Loss(token_loss)}

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or GRPO)
        self.clip_low: float | None = None
        self.clip_low_nats: float | None = None
        self.clip_high: float | None = None
        self.clip_high_nats: float | None = None
        self.token_clip_low = 0.2
        self.token_clip_high: float | None = None
        self.dual_clip: float | None = None

    def validate(self) -> None:
        """Check the clip ranges, too."""
        super().validate()
        check_either(self, "clip_low", CLIP, below=1)
        check_either(self, "clip_high", CLIP)
        if not 0 < self.token_clip_low < 1:
            raise ConfigError(
                f"`token_clip_low` must lie between 0 and 1, got {self.token_clip_low}; try 0.2."
            )
        if self.token_clip_high is not None and not self.token_clip_high > 0:
            raise ConfigError(f"`token_clip_high` must be positive or None, got {self.token_clip_high}.")
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ConfigError(f"`dual_clip` must be above 1 or None, got {self.dual_clip}; try 3.0.")

    def clip_range(self, elements: int) -> tuple[float, float]:
        """How far the ratio of an action of `elements` latent elements may fall and rise.

        Raises:
            ConfigError: If `clip_low_nats` is too wide for so few elements.
        """
        low = per_element(self, "clip_low", elements, CLIP)
        if not low < 1:
            raise ConfigError(
                f"`clip_low_nats` must be less than the {elements} elements of an action, got "
                f"{self.clip_low_nats}: the ratio cannot fall below 0; try {0.1 * elements:g}."
            )
        return low, per_element(self, "clip_high", elements, low)

    def thresholds(self, phase: Phase) -> dict[str, tuple[float, str]]:
        """Both ends of the clip range."""
        if phase.kind == "latents":
            elements = phase.elements
            low, high = self.clip_range(elements)
            return threshold(self, "clip_low", elements, low, "log_prob") | threshold(
                self, "clip_high", elements, high, "log_prob"
            )
        low, high = self.token_clip_low, self.token_clip_high
        return {
            "token_clip_low": (low, "log_prob"),
            "token_clip_high": (low if high is None else high, "log_prob"),
        }


class GRPO(Agent):
    """Group relative policy optimization; see `GRPOConfig`."""

    @classmethod
    def get_default_config(cls) -> GRPOConfig:
        """The settings that belong to this agent."""
        return GRPOConfig()
