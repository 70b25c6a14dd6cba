"""GRPO: the clipped surrogate of PPO with advantages from groups; on latents, Flow-GRPO."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.base import Agent
from unirl_env.agents.config import AgentConfig, Loss
from unirl_env.agents.shards import Rows
from unirl_env.errors import ConfigError
from unirl_env.functional import SDEStep

__all__ = ["GRPO", "GRPOConfig"]


def image_loss(rows: Rows, new: SDEStep, config: Any) -> tuple[Tensor, dict[str, Tensor]]:
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


class GRPOConfig(AgentConfig):
    """Settings of `GRPO`.

    Knobs: `clip_low` and `clip_high` (None for the same), the range of the ratio. On latents, log-probs are
    means over elements, so that ratios are roots of likelihood ratios and ranges are about 1e-4.

    Reference:
        Flow-GRPO (arXiv 2505.05470); GRPO (arXiv 2402.03300).
    """

    losses = {"image": Loss(image_loss)}

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or GRPO)
        self.clip_low = 1e-4
        self.clip_high: float | None = None

    def validate(self) -> None:
        """Check the clip range, too."""
        super().validate()
        if not 0 < self.clip_low < 1:
            raise ConfigError(f"`clip_low` must lie between 0 and 1, got {self.clip_low}; try 1e-4.")
        if self.clip_high is not None and not self.clip_high > 0:
            raise ConfigError(f"`clip_high` must be positive or None, got {self.clip_high}.")

    def thresholds(self) -> dict[str, tuple[float, str]]:
        """Both ends of the clip range."""
        high = self.clip_low if self.clip_high is None else self.clip_high
        return {"clip_low": (self.clip_low, "log_prob"), "clip_high": (high, "log_prob")}


class GRPO(Agent):
    """Group relative policy optimization; see `GRPOConfig`."""

    @classmethod
    def get_default_config(cls) -> GRPOConfig:
        """The settings that belong to this agent."""
        return GRPOConfig()
