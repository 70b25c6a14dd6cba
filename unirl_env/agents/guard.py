"""GRPO-Guard: GRPO whose ratio is centred at every step, so that its clip acts on both sides."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.agent import Agent
from unirl_env.agents.config import AgentConfig
from unirl_env.agents.grpo import token_loss
from unirl_env.agents.loss import Context, Loss
from unirl_env.agents.rows import Rows
from unirl_env.functional import Metric, SDEStep
from unirl_env.settings import Settings, setting


def latent_loss(rows: Rows, new: SDEStep, context: Context) -> tuple[Tensor, dict[str, Metric]]:
    """`F.guard_loss`; that steps weigh by the inverse of their length is in the advantages."""
    config = context.config
    assert rows.old_mean is not None  # its `Loss` needs them
    return F.guard_loss(
        new.log_prob,
        rows.old_log_prob,
        new.mean,
        rows.old_mean,
        new.std,
        rows.advantages,
        clip_low=config.centred_clip,
        max_log_ratio=config.max_log_ratio,
        mask=rows.mask,
        denominator=rows.denominator,
    )


@dataclass
class GuardKnobs(Settings):
    """How far ratios may move to either side."""

    centred_clip: float = setting(2e-6, above=0, below=1)
    """That of latents, centred, on the scale of a mean over the elements in units of the latent: about the
    step's std times a range of GRPO's. 2e-6 is published for Qwen-Image; a D times smaller latent takes D
    times more."""
    token_clip_low: float = setting(0.2, above=0, below=1)
    """How far the ratio of a token may fall."""
    token_clip_high: float | None = setting(None, above=0)
    """How far it may rise; null for the same."""
    dual_clip: float | None = setting(None, above=1, hint="3.0")
    """A bound on ratios of tokens that have run away under negative advantages; null for none."""


class GRPOGuardConfig(AgentConfig):
    """Settings of `GRPOGuard`; its knobs are those of `GuardKnobs`. Tokens are trained as by GRPO.

    Reference:
        GRPO-Guard (arXiv 2510.22319).
    """

    losses = {
        "latents": Loss(latent_loss, needs={"mean"}, skips_idle=True),
        "tokens": Loss(token_loss, skips_idle=True),
    }
    knobs = GuardKnobs
    own_step_weights = "inverse_length"

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or GRPOGuard)


class GRPOGuard(Agent):
    """GRPO with a centred ratio; see `GRPOGuardConfig`."""

    config_class = GRPOGuardConfig
