"""What a learner reports of one iteration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unirl_env.agents.metrics import Metric
from unirl_env.errors import ContractError

__all__ = ["FollowedFailure", "PhaseUpdate", "Update", "floats"]


class FollowedFailure(ContractError):
    """This learner stopped because another one failed."""


@dataclass
class PhaseUpdate:
    """What a learner reports of one phase.

    Attributes:
        metrics: Per optimizer step: `loss`, as it was minimized, and what it reports of this learner's rows;
            of a mean, the sum over them.
        reduce: How each metric is reduced: `"mean"` unless it is said here.
        rows: Per optimizer step, how many unmasked rows this learner computed.
        gap: How far scoring misses what the rollout recorded, before any weight has changed: `max`, and
            `sum` over `rows` of |difference of log-probs|.
        check: What the self-check measured, if it ran.
    """

    metrics: list[dict[str, float]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    gap: dict[str, float] = field(default_factory=dict)
    check: dict[str, float] = field(default_factory=dict)
    reduce: dict[str, str] = field(default_factory=dict)

    def take(
        self, losses: Sequence[Tensor], metrics: Sequence[Mapping[str, Metric]], denominator: float
    ) -> None:
        """Note an optimizer step: the losses and metrics of its micro-batches, all with one denominator.

        Raises:
            ContractError: If a metric is reduced now so and now otherwise.
        """
        step = {}
        for name in dict.fromkeys(name for part in metrics for name in part):
            found = [part[name] for part in metrics if name in part]
            how = self.reduce.setdefault(name, found[0].reduce)
            if any(metric.reduce != how for metric in found):
                raise ContractError(
                    f"The metric {name!r} must always be reduced alike, got {how!r} and others."
                )
            values = torch.stack([m.value * denominator if how == "mean" else m.value for m in found])
            step[name] = values.max() if how == "max" else values.sum()
        if losses:
            step["loss"] = torch.stack(list(losses)).sum()
        self.metrics.append(step)


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


def floats(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """All at once: each number fetched from an accelerator on its own would wait for it."""
    if not metrics:
        return {}
    return dict(
        zip(metrics, torch.stack([v.detach().float() for v in metrics.values()]).tolist(), strict=True)
    )
