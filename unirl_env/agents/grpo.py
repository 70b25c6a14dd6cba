"""GRPO: the clipped surrogate of PPO with advantages from groups; on latents, Flow-GRPO."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.agent import Agent
from unirl_env.agents.config import AgentConfig
from unirl_env.agents.loss import Context, Loss, check_either, fall, per_element, threshold
from unirl_env.agents.rows import Rows
from unirl_env.agents.token_clip import TokenClipKnobs, token_loss, token_thresholds
from unirl_env.episode import Phase
from unirl_env.functional import Metric, SDEStep
from unirl_env.settings import setting

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
