"""GSPO: GRPO's clip on the ratio of whole texts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.agent import Agent
from unirl_env.agents.config import AgentConfig
from unirl_env.agents.loss import Context, Loss
from unirl_env.agents.rows import Rows
from unirl_env.episode import Phase
from unirl_env.errors import ConfigError
from unirl_env.functional import Metric, TokenStep
from unirl_env.settings import Settings, setting


def token_loss(rows: Rows, new: TokenStep, context: Context) -> tuple[Tensor, dict[str, Metric]]:
    """`F.gspo_loss` with the configuration's clip range."""
    config = context.config
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


@dataclass
class GSPOKnobs(Settings):
    """The range of a text's ratio, the geometric mean of its tokens': much narrower than that of a token."""

    token_clip_low: float = setting(3e-4, above=0, below=1)
    """How far it may fall."""
    token_clip_high: float = setting(4e-4, above=0, below=1)
    """How far it may rise."""


class GSPOConfig(AgentConfig):
    """Settings of `GSPO`, for environments of tokens; its knobs are those of `GSPOKnobs`.

    Texts count alike (`aggregate` is `"sequence_mean"`).

    Reference:
        GSPO (arXiv 2507.18071).
    """

    losses = {"tokens": Loss(token_loss, skips_idle=True), "continuous": Loss(token_loss, skips_idle=True)}
    knobs = GSPOKnobs
    own_aggregate = "sequence_mean"
    declared_bias = {"tokens": "a text's ratio is the geometric mean of its tokens', and texts count alike"}
    own_correction_level = "episode"

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or GSPO)

    def validate(self) -> None:
        """Check the weighing, too."""
        super().validate()
        if self.weighing != "sequence_mean":
            raise ConfigError(
                f"`aggregate` must be sequence_mean for GSPO, got {self.aggregate!r}: a text has one ratio; "
                "try null, which is the algorithm's own."
            )
        for name, words in (("kl_in", "loss"), ("correction_level", "episode")):
            if getattr(self, name) not in (None, words):
                raise ConfigError(
                    f"`{name}` must be {words} for GSPO, got {getattr(self, name)!r}: a text has one ratio, "
                    f"and one advantage; try {words}, or another agent."
                )

    def thresholds(self, phase: Phase) -> dict[str, tuple[float, str]]:
        """Both ends of the clip range."""
        return {name: (getattr(self, name), "log_prob") for name in ("token_clip_low", "token_clip_high")}


class GSPO(Agent):
    """Group sequence policy optimization; see `GSPOConfig`."""

    config_class = GSPOConfig
