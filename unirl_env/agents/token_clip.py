"""The clipped surrogate on tokens, which several agents share."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.loss import Context
from unirl_env.agents.rows import Rows
from unirl_env.functional import Metric, TokenStep
from unirl_env.settings import Settings, setting


@dataclass
class TokenClipKnobs(Settings):
    """How far ratios of tokens may move."""

    token_clip_low: float = setting(0.2, above=0, below=1)
    """How far the ratio of a token may fall."""
    token_clip_high: float | None = setting(None, above=0, most=inf)
    """How far it may rise; null for the same. DAPO's clip-higher is 0.28."""
    dual_clip: float | None = setting(None, above=1, most=inf, hint="3.0")
    """A bound on ratios of tokens that have run away under negative advantages; null for none."""


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


def token_thresholds(config: Any) -> dict[str, tuple[float, str]]:
    """Both ends of the clip range of tokens, as `AgentConfig.thresholds` has them."""
    low, high = config.token_clip_low, config.token_clip_high
    return {
        "token_clip_low": (low, "log_prob"),
        "token_clip_high": (low if high is None else high, "log_prob"),
    }
