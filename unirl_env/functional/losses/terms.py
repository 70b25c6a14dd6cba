"""What all losses share: the checked entries, the safe ratio, and the mean with a global denominator."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unirl_env.errors import ConfigError, ContractError, ShapeError
from unirl_env.functional.require import require_floating, require_shape

__all__ = [
    "MAXIMA",
    "MAX_LOG_RATIO",
    "Entries",
    "entries",
    "masked_mean",
    "merge_metrics",
    "outwards",
    "ratio_metrics",
    "require_positive_std",
    "require_token_log_prob",
]

MAX_LOG_RATIO = 20.0
"""Where log-ratios are cut unless told otherwise: exp(20) is finite in float32 with room for an advantage."""
MAXIMA = frozenset({"ratio_max_deviation", "kl_max", "tv_max"})
"""The metrics of the losses here that are maxima over entries; all others are sums over the denominator."""
LARGEST_LOG_RATIO = 40.0  # beyond it the square of a ratio times an advantage overflows float32


class Entries(NamedTuple):
    """The inputs of a loss, checked, in float32, with neutral values where the mask is False.

    Neutral values are put in before any arithmetic, so that an infinity or NaN in a masked entry (a padded
    token, a failed score) reaches neither the loss nor, as 0 * inf, its gradient.

    Attributes:
        log_ratio: `[*lead]` new minus old log-probability, clamped to +-`max_log_ratio`, with gradient where
            it is not cut.
        old_log_prob: `[*lead]`.
        advantages: `[*lead]`.
        mask: `[*lead]` bool.
        denominator: What sums are divided by.
    """

    log_ratio: Tensor
    old_log_prob: Tensor
    advantages: Tensor
    mask: Tensor
    denominator: Tensor | float


def entries(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    mask: Tensor | None,
    denominator: float | Tensor | None,
    max_log_ratio: float = MAX_LOG_RATIO,
) -> Entries:
    """Check and prepare the inputs that all losses have in common.

    Args:
        log_prob: `[B]` or `[B, S]`, with gradient.
        old_log_prob: As `log_prob`.
        advantages: As `log_prob`, or `[B]` for all steps of an episode.
        mask: Bool as `log_prob`; None keeps all.
        denominator: Positive; None is the number of unmasked entries, at least 1.
        max_log_ratio: Where log-ratios are cut, on the scale of the log-probabilities.

    Raises:
        ShapeError: Shapes or dtypes do not fit, or the denominator is not positive.
        ConfigError: `max_log_ratio` is not in (0, 40].
    """
    require_max_log_ratio(max_log_ratio)
    for name, tensor in (("log_prob", log_prob), ("old_log_prob", old_log_prob), ("advantages", advantages)):
        require_floating(name, tensor)
    if not 1 <= log_prob.ndim <= 2 or log_prob.numel() == 0:
        raise ShapeError(
            f"`log_prob` must be [B] or [B, S] and not empty, got {list(log_prob.shape)}; "
            "try sde_step's log_prob, which is already reduced over elements."
        )
    require_shape("old_log_prob", old_log_prob, log_prob.shape, "log_prob")
    if advantages.ndim == 1 and log_prob.ndim == 2 and advantages.shape[0] == log_prob.shape[0]:
        advantages = advantages[:, None].expand_as(log_prob)
    require_shape("advantages", advantages, log_prob.shape, "log_prob")
    mask, denominator = mask_and_denominator(mask, denominator, log_prob, "log_prob")
    old = torch.where(mask, old_log_prob.detach().float(), 0.0)
    log_ratio = torch.where(mask, log_prob.float(), 0.0) - old
    return Entries(
        log_ratio=log_ratio.clamp(-max_log_ratio, max_log_ratio),
        old_log_prob=old,
        advantages=torch.where(mask, advantages.detach().float(), 0.0),
        mask=mask,
        denominator=denominator,
    )


def mask_and_denominator(
    mask: Tensor | None, denominator: float | Tensor | None, like: Tensor, name: str
) -> tuple[Tensor, Tensor | float]:
    """The mask and the denominator, checked against the entries `like` and filled in where None."""
    if mask is None:
        mask = torch.ones_like(like, dtype=torch.bool)
    elif not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise ShapeError("`mask` must be a bool tensor; try mask.bool().")
    require_shape("mask", mask, like.shape, name)
    if denominator is None:
        return mask, mask.sum().clamp_min(1)
    if isinstance(denominator, Tensor):
        if denominator.ndim:
            raise ShapeError(
                f"`denominator` must be one number, got shape {list(denominator.shape)}; try its sum."
            )
        return mask, denominator.detach().to(like.device)
    if not denominator > 0:
        raise ShapeError(
            f"`denominator` must be positive, got {denominator}; try the number of unmasked entries of the "
            "whole optimizer step."
        )
    return mask, float(denominator)


def masked_mean(values: Tensor, mask: Tensor, denominator: Tensor | float) -> Tensor:
    """Sum of `values` where `mask` is True, over `denominator`: a scalar."""
    return torch.where(mask, values, 0.0).sum() / denominator


def require_max_log_ratio(bound: float) -> None:
    """Raise ConfigError unless the ratio at the bound, its square and an advantage fit into float32."""
    if not 0 < bound <= LARGEST_LOG_RATIO:
        raise ConfigError(
            f"`max_log_ratio` must lie in (0, {LARGEST_LOG_RATIO:g}], got {bound}; try {MAX_LOG_RATIO:g}."
        )


def outwards(e: Entries) -> Tensor:
    """Bool: entries whose gradient moves the ratio further from 1.

    A token's own probability then moves further from that under the policy which sampled. The divergence of
    two Gaussians need not grow: see `flow_dppo_loss`.
    """
    # Signs and not the product of the numbers, which may underflow to zero.
    return e.log_ratio.detach().sign() * e.advantages.sign() > 0


def ratio_metrics(e: Entries) -> dict[str, Tensor]:
    """`ratio_mean`, `ratio_max_deviation` and `approx_kl`, without gradient.

    `approx_kl` is the mean of old minus new log-probability. It is unbiased on the scale of the
    log-probabilities whatever their reduction; estimators that are quadratic in the log-ratio are not, once
    it is a mean over elements.
    """
    log_ratio = e.log_ratio.detach()
    deviation = torch.where(e.mask, torch.expm1(log_ratio).abs(), 0.0)
    return {
        "ratio_mean": masked_mean(log_ratio.exp(), e.mask, e.denominator),
        "ratio_max_deviation": deviation.max(),
        "approx_kl": masked_mean(-log_ratio, e.mask, e.denominator),
    }


def require_positive_std(std: Tensor, mask: Tensor) -> Tensor:
    """Raise ContractError if a trained entry is deterministic; returns `std` with 1 where masked.

    A step without noise has no density to train: leaving it out quietly would let the caller's denominator
    count it.
    """
    if bool((mask & ~(std > 0)).any()):
        raise ContractError(
            "`std` must be positive wherever `mask` is True, got a deterministic or NaN entry; "
            "try mask & (std > 0), and count the denominator from that mask."
        )
    return torch.where(mask, std.detach().float(), 1.0)


def require_token_log_prob(e: Entries) -> None:
    """Raise ContractError if an old log-probability is above 0, which that of a token cannot be."""
    if bool((e.old_log_prob > 1e-4).any()):
        raise ContractError(
            "`old_log_prob` must be the log-probability of a token, at most 0, got a larger one; "
            "try drpo_gaussian_loss or flow_dppo_loss for latents, whose density has no upper bound."
        )


def merge_metrics(
    parts: Sequence[Mapping[str, Tensor]], *, maxima: Collection[str] = MAXIMA
) -> dict[str, Tensor]:
    """The metrics of a whole optimizer step from those of its micro-batches and shards.

    Args:
        parts: What the losses returned, all with the same global denominator.
        maxima: Names of those that are maxima; unless told otherwise, those of the losses here.

    Returns:
        Maxima of these names; sums of all others.
    """
    names = dict.fromkeys(name for part in parts for name in part)
    merged = {}
    for name in names:
        values = torch.stack([part[name] for part in parts if name in part])
        merged[name] = values.max() if name in maxima else values.sum()
    return merged
