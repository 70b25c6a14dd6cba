"""The metrics of losses: a number, and how those of micro-batches, learners and steps become one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unirl_env.agents.rows import Rows
from unirl_env.errors import ContractError, ShapeError
from unirl_env.functional.losses import MAXIMA

__all__ = ["Metric", "as_metrics"]

REDUCTIONS = ("mean", "max", "sum")
OTHERS = ("loss", "gap", "gap_max", "grad_norm", "skipped_steps", "trained_rows", "lr", "reference_kl")
OTHERS += ("reward", "reward_std", "advantage_max", "advantage_zero", "zero_std_groups", "saturation")
OTHERS += ("episodes", "episodes_per_second", "sync_bytes", "weights_version", "tokens", "truncated")
PREFIXES = ("self_check/", "noise_floor/", "seconds/", "reward/", "heldout")
"""What the log says of an iteration besides a loss's metrics: they must not take its place."""


@dataclass(frozen=True)
class Metric:
    """One number that a loss reports of a micro-batch.

    Attributes:
        value: A scalar without gradient.
        reduce: How numbers of several micro-batches, learners and optimizer steps become one of an iteration:
            `"mean"` over the rows that were computed, of which this is a share, a sum over the micro-batch's
            rows divided by `rows.denominator`; the `"max"`; or the `"sum"`.

    Raises:
        ContractError: If `reduce` is none of these.
    """

    value: Tensor | float
    reduce: str = "mean"

    def __post_init__(self) -> None:
        if self.reduce not in REDUCTIONS:
            raise ContractError(f"`reduce` must be one of {', '.join(REDUCTIONS)}, got {self.reduce!r}.")

    @classmethod
    def over(cls, rows: Rows, values: Tensor, reduce: str = "mean") -> Metric:
        """The metric of `values` `[N]`, one per row; masked rows count nowhere.

        Raises:
            ShapeError: If there is not one value for each row.
            ContractError: If `reduce` is unknown.
        """
        if tuple(values.shape) != tuple(rows.mask.shape):
            raise ShapeError(f"`values` must be [{len(rows)}], one per row, got {list(values.shape)}.")
        values = values.detach().float()
        if reduce == "max":
            return cls(torch.where(rows.mask, values, -torch.inf).amax(), "max")
        total = torch.where(rows.mask, values, 0.0).sum()
        return cls(total / rows.denominator if reduce == "mean" else total, reduce)


def as_metrics(found: Any, loss: str, device: torch.device) -> dict[str, Metric]:
    """What the loss named `loss` reports, checked.

    A plain tensor is taken as the functional losses mean it: as a share of the denominator, but for their
    maxima, whose names are known.

    Raises:
        ContractError: If something cannot be a metric.
    """
    if not isinstance(found, Mapping):
        raise ContractError(f"The metrics of the loss {loss} must be a dict, got {type(found).__name__}.")
    metrics = {}
    for name, value in found.items():
        metric = value
        if isinstance(value, Tensor):
            metric = Metric(value, "max" if name in MAXIMA else "mean")
        _check(name, metric, loss, device)
        if not isinstance(metric.value, Tensor):
            metric = Metric(torch.tensor(float(metric.value), device=device), metric.reduce)
        metrics[name] = metric
    return metrics


def _check(name: Any, metric: Any, loss: str, device: torch.device) -> None:
    """Raise ContractError, naming metric and loss, unless it can be reported."""

    def must(words: str, got: str) -> ContractError:
        return ContractError(f"The metric {name!r} of the loss {loss} must {words}, got {got}.")

    if not isinstance(name, str):
        raise must("have a name", type(name).__name__)
    if name in OTHERS or name.startswith(PREFIXES):
        raise must("have a name of its own", "one that the log has already; try another name")
    if not isinstance(metric, Metric):
        raise must("be a Metric or a tensor", f"{type(metric).__name__}; try Metric(value, 'max')")
    value = metric.value
    if not isinstance(value, Tensor):
        if not isinstance(value, int | float):
            raise must("hold a number", type(value).__name__)
        return
    if value.ndim or value.is_complex():
        raise must(
            "be one real number", f"shape {list(value.shape)}, {value.dtype}; try Metric.over(rows, values)"
        )
    if value.requires_grad:
        raise must("have no gradient", "one that has; try .detach()")
    if value.device != device:
        raise must(f"be on {device} like the loss", str(value.device))
