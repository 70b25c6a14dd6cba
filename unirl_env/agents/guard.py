"""GRPO-Guard: GRPO whose ratio is centred at every step, so that its clip acts on both sides."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.agent import Agent
from unirl_env.agents.config import AgentConfig
from unirl_env.agents.loss import Context, Loss, check_either, fall, threshold
from unirl_env.agents.rows import Rows
from unirl_env.agents.step_credit import step_stds
from unirl_env.agents.token_clip import TokenClipKnobs, token_loss, token_thresholds
from unirl_env.episode import Phase
from unirl_env.functional import Metric, SDEStep
from unirl_env.settings import setting

CLIP = 2e-6
"""The published range on latents, for Qwen-Image."""


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
        clip_low=config.centred_range(rows.action[0].numel()),
        max_log_ratio=config.max_log_ratio,
        mask=rows.mask,
        denominator=rows.denominator,
    )


@dataclass
class GuardKnobs(TokenClipKnobs):
    """How far ratios may move; that of latents is centred, and moves as far to either side.

    On latents it is on the scale of a mean over the D elements in units of the latent: at a step whose noise
    has the std s, a range of c lets the likelihood ratio of a whole action move by c D / s nats from its
    mean. So what means the same as n nats of GRPO's is n times the mean std of the trained steps. Of the two
    units, one may be given.
    """

    centred_clip: float | None = setting(None, above=0, below=1, hint=f"{CLIP:g}")
    """How far the centred ratio of latents may move. Without this and the next it is 2e-6, published for
    Qwen-Image, and far too little for a latent of few elements."""
    centred_clip_nats: float | None = setting(None, above=0, hint="0.2")
    """The same in nats of a whole action at a step of std 1, D times as much: the same at any size."""

    def check(self, prefix: str = "") -> None:
        """Refuse one bound in two units, too."""
        super().check(prefix)
        check_either(self, "centred_clip", prefix)


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

    def centred_range(self, elements: int) -> float:
        """How far the centred ratio of an action of `elements` latent elements may move.

        Raises:
            ConfigError: If `centred_clip_nats` is too wide for so few elements.
        """
        return fall(self, "centred_clip", elements, CLIP)

    def thresholds(self, phase: Phase) -> dict[str, tuple[float, str]]:
        """The clip range of tokens, or that of latents as it is where it is narrowest for a log-prob."""
        if phase.kind != "latents":
            return token_thresholds(self)
        elements = phase.elements
        # ln q is std times a difference of log-probs.
        widest = float(step_stds(phase, self.policy)[phase.mask.cpu()].max())
        return threshold(self, "centred_clip", elements, self.centred_range(elements) / widest, "log_prob")


class GRPOGuard(Agent):
    """GRPO with a centred ratio; see `GRPOGuardConfig`."""

    config_class = GRPOGuardConfig
