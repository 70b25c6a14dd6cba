"""DRPO: a smooth pull back to the old policy in place of a clip."""

from __future__ import annotations

from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.base import Agent
from unirl_env.agents.config import AgentConfig
from unirl_env.agents.loss import Context, Loss
from unirl_env.agents.rows import Rows
from unirl_env.errors import ConfigError
from unirl_env.functional import SDEStep, TokenStep

__all__ = ["DRPO", "DRPOConfig"]


def latent_loss(rows: Rows, new: SDEStep, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
    """`F.drpo_gaussian_loss` with the configuration's radius."""
    config = context.config
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


def token_loss(rows: Rows, new: TokenStep, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
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


class DRPOConfig(AgentConfig):
    """Settings of `DRPO`.

    Knobs: `epsilon`, the radius of the trust region in total variation; below 1 it has a border, beyond which
    transitions are turned back. On latents it is that of the joint policies, a probability whatever the
    number of elements: the border lies at `4 erfinv(epsilon)^2` nats. The published 12.5 reweighs tokens by
    8 % at most and turns none back. `token_epsilon` is that of tokens, where episodes have latents, too; None
    for the same.

    Reference:
        DRPO (arXiv 2606.09821); on latents in its Gaussian form (`F.drpo_gaussian_loss`).
    """

    losses = {
        "latents": Loss(latent_loss, needs={"mean"}, skips_idle=True),
        "tokens": Loss(token_loss, skips_idle=True),
    }

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or DRPO)
        self.epsilon = 0.5
        self.token_epsilon: float | None = None

    def validate(self) -> None:
        """Check the radius, too."""
        super().validate()
        for name in ("epsilon", "token_epsilon"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"`{name}` must be positive, got {value}; try 0.5.")


class DRPO(Agent):
    """Divergence-regularized policy optimization; see `DRPOConfig`."""

    @classmethod
    def get_default_config(cls) -> DRPOConfig:
        """The settings that belong to this agent."""
        return DRPOConfig()
