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
        reference_kl: `(new, reference, rows, config) -> ` what pulls towards the untrained policy in the
            loss, and the mean divergence from it, to be reported.
    """

    step: type
    rows: Callable[..., Rows]
    lots: Callable[..., list[Tensor]]
    reference_kl: Callable[[Any, Any, Rows, Any], tuple[Tensor, Tensor]]


def _latent_kl(new: SDEStep, reference: SDEStep, rows: Rows, config: Any) -> tuple[Tensor, Tensor]:
    kl = F.reference_kl(new.mean, reference.mean, new.std, rows.mask, rows.denominator)
    return kl, kl.detach()


def _token_kl(new: TokenStep, reference: TokenStep, rows: Rows, config: Any) -> tuple[Tensor, Tensor]:
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


KINDS = {
    "latents": PhaseKind(SDEStep, latent_rows, latent_lots, _latent_kl),
    "tokens": PhaseKind(TokenStep, token_rows, token_lots, _token_kl),
}
"""By the name of the kind, as `Phase.kind` has it."""
