"""The kinds of phases, and all that a learner must know to treat them alike. The table is open to users."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.rows import Rows, flat_rows, latent_lots, latent_rows, token_lots, token_rows
from unirl_env.functional import SDEStep, TokenStep
from unirl_env.policies.distributions import ActionStep
from unirl_env.registry import Registry

__all__ = ["KINDS", "Losses", "PhaseKind", "Step"]

Step = SDEStep | TokenStep | ActionStep


@dataclass(frozen=True)
class PhaseKind:
    """How the episodes of a phase become rows, and what scoring them gives.

    Attributes:
        step: What the policy's forward pass returns, as named fields.
        rows: `(shard, name of the phase, episodes, denominator) -> Rows`.
        lots: `(phase, busy episodes, size=, tokens=) -> micro-batches`.
        reference_kl: `(new, reference, rows, config) -> ` what pulls towards the untrained policy in the
            loss, and the mean divergence from it, to be reported.
        like: Another kind, whose losses hold here as they are: where the step has the fields that those read,
            with the same meaning. Without one, an agent must have a loss of this very kind.
        per_element: Whether log-probs are means over the elements of an action, and not its own in nats.
        about: What the actions are, for the error about an agent that has no loss on them.
    """

    step: type
    rows: Callable[..., Rows]
    lots: Callable[..., list[Tensor]]
    reference_kl: Callable[[Any, Any, Rows, Any], tuple[Tensor, Tensor]]
    like: str | None = None
    per_element: bool = False
    about: str = ""


def _latent_kl(new: SDEStep, reference: SDEStep, rows: Rows, config: Any) -> tuple[Tensor, Tensor]:
    kl = F.reference_kl(new.mean, reference.mean, new.std, rows.mask, rows.denominator)
    return kl, kl.detach()


def _token_kl(new: Any, reference: Any, rows: Rows, config: Any) -> tuple[Tensor, Tensor]:
    def estimate(log_prob: Tensor, estimator: str) -> Tensor:
        return F.token_reference_kl(
            log_prob,
            reference.log_prob,
            old_log_prob=rows.old_log_prob,
            estimator=estimator,
            mask=rows.mask,
            denominator=rows.denominator,
            weight=rows.weight,
            max_log_ratio=config.max_log_ratio,
        )

    # The value of "k2" is no KL far from the reference; that of "k3" is unbiased, and never negative.
    return estimate(new.log_prob, config.kl_estimator), estimate(new.log_prob.detach(), "k3")


LATENTS = PhaseKind(SDEStep, latent_rows, latent_lots, _latent_kl, per_element=True)
TOKENS = PhaseKind(TokenStep, token_rows, token_lots, _token_kl)
DISCRETE = PhaseKind(TokenStep, flat_rows, latent_lots, _token_kl, like="tokens", about="one of n actions")
CONTINUOUS = PhaseKind(
    ActionStep,
    flat_rows,
    latent_lots,
    _token_kl,
    about="real actions with densities: what bounds probabilities means nothing of them",
)


class _Kinds(Registry):
    """Kinds by name: a registered one, or the dotted path of a `PhaseKind`, which every process can find."""

    def __getitem__(self, name: str) -> PhaseKind:
        return self.get(name)


KINDS = _Kinds(
    "phase kind",
    {name.lower(): f"{__name__}:{name}" for name in ("LATENTS", "TOKENS", "DISCRETE", "CONTINUOUS")},
)
"""By the name of the kind, as `Phase.kind` has it; `KINDS.register` adds one."""


class Losses(dict):
    """Losses by kinds of phases; a kind without a loss of its own takes that of the kind which it is like."""

    def __contains__(self, kind: object) -> bool:
        return super().__contains__(kind) or super().__contains__(KINDS[kind].like)

    def __missing__(self, kind: str) -> Any:
        like = KINDS[kind].like
        if like is None:
            raise KeyError(kind)
        return self[like]
