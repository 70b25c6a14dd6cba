"""GRPO: the clipped surrogate of PPO with advantages from groups; on latents, Flow-GRPO."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.base import Agent
from unirl_env.agents.config import AgentConfig, Loss
from unirl_env.agents.rows import Rows
from unirl_env.errors import ConfigError
from unirl_env.functional import SDEStep, TokenStep

__all__ = ["GRPO", "GRPOConfig"]


def latent_loss(rows: Rows, new: SDEStep, config: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """`F.grpo_loss` with the configuration's clip range."""
    return F.grpo_loss(
        new.log_prob,
        rows.old_log_prob,
        rows.advantages,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
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
        mask=rows.mask,
        denominator=rows.denominator,
    )


class GRPOConfig(AgentConfig):
    """Settings of `GRPO`.

    Knobs on latents: `clip_low` and `clip_high` (None for the same), the range of the ratio. Log-probs of
    latents are means over elements, so that ratios are roots of likelihood ratios and ranges are about 1e-4.

    Knobs on tokens: `token_clip_low` and `token_clip_high` (None for the same; DAPO's clip-higher is 0.28),
    and `dual_clip` (above 1), a bound for ratios that have run away under negative advantages. Dr. GRPO is
    `aggregate="horizon"` with `advantage_scale="none"`.

    Reference:
        Flow-GRPO (arXiv 2505.05470); GRPO (2402.03300); DAPO (2503.14476); Dr. GRPO (2503.20783).
    """

    losses = {"latents": Loss(latent_loss), "tokens": Loss(token_loss)}

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or GRPO)
        self.clip_low = 1e-4
        self.clip_high: float | None = None
        self.token_clip_low = 0.2
        self.token_clip_high: float | None = None
        self.dual_clip: float | None = None

    def validate(self) -> None:
        """Check the clip ranges, too."""
        super().validate()
        for name, usual in (("clip_low", 1e-4), ("token_clip_low", 0.2)):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(
                    f"`{name}` must lie between 0 and 1, got {getattr(self, name)}; try {usual:g}."
                )
        for name in ("clip_high", "token_clip_high"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ConfigError(f"`{name}` must be positive or None, got {getattr(self, name)}.")
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ConfigError(f"`dual_clip` must be above 1 or None, got {self.dual_clip}; try 3.0.")

    def thresholds(self, kind: str) -> dict[str, tuple[float, str]]:
        """Both ends of the clip range."""
        prefix = "" if kind == "latents" else "token_"
        low, high = getattr(self, f"{prefix}clip_low"), getattr(self, f"{prefix}clip_high")
        return {
            f"{prefix}clip_low": (low, "log_prob"),
            f"{prefix}clip_high": (low if high is None else high, "log_prob"),
        }


class GRPO(Agent):
    """Group relative policy optimization; see `GRPOConfig`."""

    @classmethod
    def get_default_config(cls) -> GRPOConfig:
        """The settings that belong to this agent."""
        return GRPOConfig()
