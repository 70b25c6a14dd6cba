"""GSPO: GRPO's clip on the ratio of whole texts."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.base import Agent
from unirl_env.agents.config import AgentConfig, Loss
from unirl_env.agents.rows import Rows
from unirl_env.episode import Phase
from unirl_env.errors import ConfigError
from unirl_env.functional import TokenStep

__all__ = ["GSPO", "GSPOConfig"]


def token_loss(rows: Rows, new: TokenStep, config: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """`F.gspo_loss` with the configuration's clip range."""
    return F.gspo_loss(
        new.log_prob,
        rows.old_log_prob,
        rows.advantages,
        rows.episode,
        clip_low=config.token_clip_low,
        clip_high=config.token_clip_high,
        max_log_ratio=config.max_log_ratio,
        mask=rows.mask,
        denominator=rows.denominator,
    )


class GSPOConfig(AgentConfig):
    """Settings of `GSPO`, for environments of tokens.

    Knobs: `token_clip_low` and `token_clip_high`, the range of the ratio of a text, which is the geometric
    mean of its tokens' ratios: much narrower than a token's. Texts count alike (`aggregate` is
    `"sequence_mean"`).

    Reference:
        GSPO (arXiv 2507.18071).
    """

    losses = {"tokens": Loss(token_loss), "continuous": Loss(token_loss)}

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or GSPO)
        self.aggregate = "sequence_mean"
        self.token_clip_low = 3e-4
        self.token_clip_high = 4e-4

    def validate(self) -> None:
        """Check the clip range and the weighing, too."""
        super().validate()
        for name in ("token_clip_low", "token_clip_high"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"`{name}` must lie between 0 and 1, got {getattr(self, name)}; try 3e-4.")
        if self.aggregate != "sequence_mean":
            raise ConfigError(
                f"`aggregate` must be 'sequence_mean' for GSPO, got {self.aggregate!r}: a text has one ratio."
            )

    def thresholds(self, phase: Phase) -> dict[str, tuple[float, str]]:
        """Both ends of the clip range."""
        return {name: (getattr(self, name), "log_prob") for name in ("token_clip_low", "token_clip_high")}


class GSPO(Agent):
    """Group sequence policy optimization; see `GSPOConfig`."""

    @classmethod
    def get_default_config(cls) -> GSPOConfig:
        """The settings that belong to this agent."""
        return GSPOConfig()
