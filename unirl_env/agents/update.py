"""What a learner reports of one iteration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unirl_env.errors import ContractError

__all__ = ["FollowedFailure", "PhaseUpdate", "Update", "floats", "row_sums"]


class FollowedFailure(ContractError):
    """This learner stopped because another one failed."""


@dataclass
class PhaseUpdate:
    """What a learner reports of one phase.

    Attributes:
        metrics: Per optimizer step: `loss`, as it was minimized; sums over this learner's rows; maxima for
            names with the word "max".
        rows: Per optimizer step, how many unmasked rows this learner computed.
        gap: How far scoring misses what the rollout recorded, before any weight has changed: `max`, and
            `sum` over `rows` of |difference of log-probs|.
        check: What the self-check measured, if it ran.
    """

    metrics: list[dict[str, float]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    gap: dict[str, float] = field(default_factory=dict)
    check: dict[str, float] = field(default_factory=dict)


@dataclass
class Update:
    """What a learner reports of one iteration.

    Attributes:
        phases: By the phase's name, what it reports of it.
        grad_norm: Per optimizer step, of all learners' gradient before clipping.
        skipped: Per optimizer step, whether the step was left out because the gradient was not finite.
        error: What stopped this learner.
    """

    phases: dict[str, PhaseUpdate] = field(default_factory=dict)
    grad_norm: list[float] = field(default_factory=list)
    skipped: list[bool] = field(default_factory=list)
    error: Exception | None = None


def row_sums(metrics: Mapping[str, Tensor], denominator: float) -> dict[str, Tensor]:
    """Sums over rows instead of shares of the minibatch; the loss and maxima as they are."""
    return {
        name: value if name == "loss" or "max" in name.split("_") else value * denominator
        for name, value in metrics.items()
    }


def floats(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """All at once: each number fetched from an accelerator on its own would wait for it."""
    if not metrics:
        return {}
    return dict(
        zip(metrics, torch.stack([v.detach().float() for v in metrics.values()]).tolist(), strict=True)
    )
