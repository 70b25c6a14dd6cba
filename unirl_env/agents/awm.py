"""AWM: flow matching on the policy's own samples, weighted by their advantages."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.agent import Agent
from unirl_env.agents.config import AgentConfig
from unirl_env.agents.estimators import NoisedStep
from unirl_env.agents.loss import Context, Loss
from unirl_env.agents.rows import Rows
from unirl_env.functional import Metric
from unirl_env.settings import Settings, setting

NEVER = 0.999999
"""A fall of the ratio, which is positive, by so much never comes."""


def latent_loss(rows: Rows, new: NoisedStep, context: Context) -> tuple[Tensor, dict[str, Metric]]:
    """`F.grpo_loss` on the bound of the matching loss."""
    config = context.config
    low = config.clip
    return F.grpo_loss(
        new.log_prob,
        rows.old_log_prob,
        rows.weighted,
        clip_low=NEVER if low is None else min(low, NEVER),
        clip_high=1.0 if low is None else low,
        max_log_ratio=config.max_log_ratio,
        mask=rows.mask,
        denominator=rows.denominator,
    )


@dataclass
class AWMKnobs(Settings):
    """How far the ratio of the bound may move."""

    clip: float | None = setting(0.005, above=0, hint="0.005")
    """On the scale of `noising.reduction`. Published: 1, with one optimizer step for each rollout, where it
    never acts, and a pull to an average of the weights. Without either, the embedded model's velocities grow
    until its pictures fall apart. Null is that 1."""


class AWMConfig(AgentConfig):
    """Settings of `AWM`; its knobs are those of `AWMKnobs`.

    Reference:
        Advantage-weighted matching (arXiv 2509.25050).
    """

    losses = {"latents": Loss(latent_loss, skips_idle=True, estimators={"elbo"})}
    knobs = AWMKnobs
    own_estimator = "elbo"
    own_noise_weight = "ghuber"

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or AWM)


class AWM(Agent):
    """Advantage-weighted matching of flow models; see `AWMConfig`."""

    config_class = AWMConfig
