"""The plain policy gradient, on transitions, on texts, and on the evidence bound of finished latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.agent import Agent
from unirl_env.agents.config import AgentConfig
from unirl_env.agents.loss import Context, Loss
from unirl_env.agents.rows import Rows
from unirl_env.functional import Metric
from unirl_env.settings import Settings, setting


def policy_gradient(rows: Rows, new: Any, context: Context) -> tuple[Tensor, dict[str, Metric]]:
    """`F.pg_loss`, of steps, of tokens or of the bound alike."""
    config = context.config
    return F.pg_loss(
        new.log_prob,
        rows.old_log_prob,
        rows.advantages,
        ratio=config.ratio,
        pull=config.pull,
        weight_rows=rows.weight,
        max_log_ratio=config.max_log_ratio,
        mask=rows.mask,
        denominator=rows.denominator,
    )


def unpulled(config: AgentConfig) -> bool:
    """Whether rows of advantage 0 have no gradient."""
    return not config.pull


@dataclass
class PGKnobs(Settings):
    """What is made of the policy that sampled, from the second optimizer step on."""

    ratio: bool = setting(True)
    """Weigh rows by the ratio of the policies. Without a pull nothing bounds it: many steps need another
    agent."""
    pull: float = setting(0.0, least=0, hint="0.3")
    """How strongly rows are held where they were, in advantages per unit of the log-ratio d (mean-reduced on
    latents; as `noising.reduction` has it on the bound): a row comes to rest at d = A / pull, as under a KL
    to the policy that sampled. 1 is PAR and PEPG."""


class PGConfig(AgentConfig):
    """Settings of `PG`; its knobs are those of `PGKnobs`.

    Reference:
        Williams, REINFORCE (1992).
    """

    losses = {
        kind: Loss(policy_gradient, skips_idle=unpulled) for kind in ("latents", "tokens", "continuous")
    }
    knobs = PGKnobs

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or PG)

    def search_space(self) -> dict[str, Any]:
        """What a benchmark may try; no factor on a pull that is 0."""
        found = super().search_space()
        return {name: domain for name, domain in found.items() if self.pull or name != "pull"}


class PG(Agent):
    """The policy gradient with a baseline from groups; see `PGConfig`."""

    config_class = PGConfig


class ELBOPGConfig(PGConfig):
    """The policy gradient on the evidence bound (EPG): `PG` whose `estimator` is `elbo`.

    With `pull=1` it is PAR, or PEPG, which is the same. Its clipped form is `GRPO` with `estimator="elbo"`.

    Reference:
        "Rethinking the design space of RL for diffusion models" (arXiv 2602.04663).
    """

    own_estimator = "elbo"

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or ELBOPG)


class ELBOPG(Agent):
    """The policy gradient on the evidence bound; see `ELBOPGConfig`."""

    config_class = ELBOPGConfig
