"""The two kinds of phases, and all that a learner must know to treat them alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.rows import Rows, latent_lots, latent_rows, token_lots, token_rows
from unirl_env.functional import SDEStep, TokenStep

__all__ = ["KINDS", "PhaseKind", "Step"]

Step = SDEStep | TokenStep


@dataclass(frozen=True)
class PhaseKind:
    """How the episodes of a phase become rows, and what scoring them gives.

    Attributes:
        step: What the policy's forward pass returns, as named fields.
        rows: `(shard, name of the phase, episodes, denominator) -> Rows`.
        lots: `(phase, busy episodes, size=, tokens=) -> micro-batches`.
        reference_kl: `(new, reference, rows, config) -> ` the mean divergence from the untrained policy.
    """

    step: type
    rows: Callable[..., Rows]
    lots: Callable[..., list[Tensor]]
    reference_kl: Callable[[Any, Any, Rows, Any], Tensor]


def _latent_kl(new: SDEStep, reference: SDEStep, rows: Rows, config: Any) -> Tensor:
    return F.reference_kl(new.mean, reference.mean, new.std, rows.mask, rows.denominator)


def _token_kl(new: TokenStep, reference: TokenStep, rows: Rows, config: Any) -> Tensor:
    return F.token_reference_kl(
        new.log_prob,
        reference.log_prob,
        estimator=config.kl_estimator,
        mask=rows.mask,
        denominator=rows.denominator,
        weight=rows.weight,
    )


KINDS = {
    "latents": PhaseKind(SDEStep, latent_rows, latent_lots, _latent_kl),
    "tokens": PhaseKind(TokenStep, token_rows, token_lots, _token_kl),
}
"""By the name of the kind, as `Phase.kind` has it."""
