"""DiffusionNFT: a policy regressed towards its good samples and away from its bad ones."""

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


def latent_loss(rows: Rows, new: NoisedStep, context: Context) -> tuple[Tensor, dict[str, Metric]]:
    """`F.nft_loss` against the policy that sampled."""
    config = context.config
    assert rows.old_velocity is not None  # its `Loss` needs them
    return F.nft_loss(
        new.velocity,
        rows.old_velocity,
        rows.action,
        rows.observation["sigma"],
        rows.advantages,
        beta=config.beta,
        advantage_clip=config.best,
        weight=config.noise_weight,
        reduction=config.noising.reduction,
        weight_rows=rows.weight,
        mask=rows.mask,
        denominator=rows.denominator,
    )


@dataclass
class NFTKnobs(Settings):
    """How far the two policies of the loss lie from the one that sampled."""

    beta: float = setting(1.0, above=0)
    """The step to either side, in units of how far the policy has moved. Published: 1, and 0.1 for rewards
    that are hard to raise, with an average of the weights that plays (`rollout.weights`)."""
    best: float = setting(5.0, above=0)
    """The advantage of a sample that is only approached, and minus that of one that is only avoided, in the
    units of `agent.advantage_scale`."""


class NFTConfig(AgentConfig):
    """Settings of `NFT`; its knobs are those of `NFTKnobs`.

    It samples by the ODE and scores no step. The policy that it reflects is the one that sampled: with
    `rollout.weights=ema` and `agent.ema_decay`, the published slow copy.

    Reference:
        DiffusionNFT (arXiv 2509.16117).
    """

    losses = {"latents": Loss(latent_loss, needs={"velocity"}, estimators={"regression"})}
    knobs = NFTKnobs
    own_estimator = "regression"

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or NFT)


class NFT(Agent):
    """Negative-aware fine-tuning of flow models; see `NFTConfig`."""

    config_class = NFTConfig
