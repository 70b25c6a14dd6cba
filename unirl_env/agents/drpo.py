"""DRPO: a smooth pull back to the old policy in place of a clip."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.agent import Agent
from unirl_env.agents.config import AgentConfig
from unirl_env.agents.loss import Context, Loss
from unirl_env.agents.rows import Rows
from unirl_env.functional import Metric, SDEStep, TokenStep
from unirl_env.settings import Settings, setting


def latent_loss(rows: Rows, new: SDEStep, context: Context) -> tuple[Tensor, dict[str, Metric]]:
    """`F.drpo_gaussian_loss` with the configuration's radius."""
    config = context.config
    assert rows.old_mean is not None  # its `Loss` needs them
    return F.drpo_gaussian_loss(
        new.log_prob,
        rows.old_log_prob,
        new.mean,
        rows.old_mean,
        new.std,
        rows.advantages,
        epsilon=config.epsilon,
        max_log_ratio=config.max_log_ratio,
        mask=rows.mask,
        denominator=rows.denominator,
    )


def token_loss(rows: Rows, new: TokenStep, context: Context) -> tuple[Tensor, dict[str, Metric]]:
    """`F.drpo_loss` with the configuration's radius."""
    config = context.config
    return F.drpo_loss(
        new.log_prob,
        rows.old_log_prob,
        rows.weighted,
        epsilon=config.epsilon if config.token_epsilon is None else config.token_epsilon,
        max_log_ratio=config.max_log_ratio,
        mask=rows.mask,
        denominator=rows.denominator,
    )


@dataclass
class DRPOKnobs(Settings):
    """The radius of the trust region."""

    epsilon: float = setting(0.5, above=0, most=inf)
    """The radius in total variation; below 1 it has a border, beyond which transitions are turned back. On
    latents it is that of the joint policies, a probability whatever the number of elements: the border lies
    at `4 erfinv(epsilon)^2` nats. The published 12.5 reweighs tokens by 8 % at most and turns none back."""
    token_epsilon: float | None = setting(None, above=0, most=inf, hint="0.5")
    """That of tokens, where episodes have latents, too; null for the same."""


class DRPOConfig(AgentConfig):
    """Settings of `DRPO`; its knobs are those of `DRPOKnobs`.

    Reference:
        DRPO (arXiv 2606.09821); on latents in its Gaussian form (`F.drpo_gaussian_loss`).
    """

    losses = {
        "latents": Loss(latent_loss, needs={"mean"}, skips_idle=True),
        "tokens": Loss(token_loss, skips_idle=True),
    }
    knobs = DRPOKnobs

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or DRPO)


class DRPO(Agent):
    """Divergence-regularized policy optimization; see `DRPOConfig`."""

    config_class = DRPOConfig
