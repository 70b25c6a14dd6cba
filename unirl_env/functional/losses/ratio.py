"""Losses of a ratio of probabilities: what all share, and those that clip it, GRPO's and GSPO's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unirl_env.errors import ConfigError, ContractError, ShapeError
from unirl_env.functional.require import require_choice, require_floating, require_shape

MAX_LOG_RATIO = 20.0
"""Where log-ratios are cut unless told otherwise: exp(20) is finite in float32 with room for an advantage."""
LARGEST_LOG_RATIO = 40.0  # beyond it the square of a ratio times an advantage overflows float32
REDUCTIONS = ("mean", "max", "sum")


@dataclass(frozen=True)
class Metric:
    """One number that a loss reports of a micro-batch.

    Attributes:
        value: A scalar without gradient.
        reduce: How numbers of several micro-batches, learners and optimizer steps become one of an iteration:
            `"mean"` over the rows that were computed, of which this is a share, a sum over the micro-batch's
            rows divided by the denominator; the `"max"`; or the `"sum"`.

    Raises:
        ContractError: If `reduce` is none of these.
    """

    value: Tensor | float
    reduce: str = "mean"

    def __post_init__(self) -> None:
        if self.reduce not in REDUCTIONS:
            raise ContractError(f"`reduce` must be one of {', '.join(REDUCTIONS)}, got {self.reduce!r}.")

    @classmethod
    def over(cls, rows: Any, values: Tensor, reduce: str = "mean") -> Metric:
        """The metric of `values` `[N]`, one per row; masked rows count nowhere.

        Args:
            rows: What has a `mask` `[N]` and a `denominator`: the `Rows` of a loss, or `Entries`.
            values: `[N]`.
            reduce: How it is reduced.

        Raises:
            ShapeError: If there is not one value for each row.
            ContractError: If `reduce` is unknown.
        """
        if tuple(values.shape) != tuple(rows.mask.shape):
            raise ShapeError(
                f"`values` must be {list(rows.mask.shape)}, one per row, got {list(values.shape)}."
            )
        values = values.detach().float()
        if reduce == "max":
            return cls(torch.where(rows.mask, values, -torch.inf).amax(), "max")
        total = torch.where(rows.mask, values, 0.0).sum()
        return cls(total / rows.denominator if reduce == "mean" else total, reduce)


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


def ratio_metrics(e: Entries) -> dict[str, Metric]:
    """`ratio_mean`, `ratio_max_deviation` and `approx_kl`, without gradient.

    `approx_kl` is the mean of old minus new log-probability. It is unbiased on the scale of the
    log-probabilities whatever their reduction; estimators that are quadratic in the log-ratio are not, once
    it is a mean over elements.
    """
    log_ratio = e.log_ratio.detach()
    deviation = torch.where(e.mask, torch.expm1(log_ratio).abs(), 0.0)
    return {
        "ratio_mean": Metric(masked_mean(log_ratio.exp(), e.mask, e.denominator)),
        "ratio_max_deviation": Metric(deviation.max(), "max"),
        "approx_kl": Metric(masked_mean(-log_ratio, e.mask, e.denominator)),
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


def merge_metrics(parts: Sequence[Mapping[str, Metric]]) -> dict[str, Metric]:
    """The metrics of a whole optimizer step from those of its micro-batches and shards.

    Args:
        parts: What the losses returned, all with the same global denominator.

    Returns:
        The largest of each maximum; sums of all others, of which shares of one denominator are a part.

    Raises:
        ContractError: If a metric is reduced now so and now otherwise.
    """
    merged = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        found = [part[name] for part in parts if name in part]
        reduce = found[0].reduce
        if any(metric.reduce != reduce for metric in found):
            raise ContractError(
                f"The metric {name!r} must always be reduced alike, got {reduce!r} and others."
            )
        values = torch.stack([torch.as_tensor(metric.value) for metric in found])
        merged[name] = Metric(values.max() if reduce == "max" else values.sum(), reduce)
    return merged


def grpo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float | None = None,
    mask: Tensor | None = None,
    denominator: float | Tensor | None = None,
    dual_clip: float | None = None,
    max_log_ratio: float = MAX_LOG_RATIO,
) -> tuple[Tensor, dict[str, Metric]]:
    """`max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))` with `r = exp(log_prob - old_log_prob)`.

    On tokens usual ranges are 0.2 and, for `clip_high` (DAPO's clip-higher), 0.28. On latents the
    log-probability is a mean over D elements, so r is the D-th root of a likelihood ratio and very near 1:
    usual ranges are 1e-4 to 1e-5. A range of c lets the joint likelihood ratio move by about c D nats
    (exactly -D ln(1 - c) down and D ln(1 + c) up), so the same c means 6.6 nats for SD3 at 512 x 512 and 26
    at 1024; `nats_to_mean` gives the c of a range in nats. With k the mean-reduced KL divergence of the two
    policies, ln r is about -k +- sqrt(2 k / D).

    Args:
        log_prob: `[B]` or `[B, S]` under the policy being trained, with gradient.
        old_log_prob: As `log_prob`, under the policy that sampled.
        advantages: As `log_prob`, or `[B]`.
        clip_low: How far r may fall below 1 before a negative advantage stops pushing; in (0, 1).
        clip_high: How far r may rise above 1; None is `clip_low`.
        mask: Bool as `log_prob`; entries that are trained. None trains all.
        denominator: Unmasked entries of the whole optimizer step; None counts these. Dr. GRPO's fixed horizon
            is a denominator as well.
        dual_clip: Above 1: bounds the loss of an entry with a negative advantage by `-A dual_clip`, so that a
            ratio that has run away does not dominate. None leaves it unbounded.
        max_log_ratio: Where ln r is cut, on the scale of the log-probabilities (nats per token, or per
            element of a latent); beyond it an entry has no gradient. It guards against overflow and is no
            trust region.

    Returns:
        The loss, and `ratio_mean`, `ratio_max_deviation`, `approx_kl`, `clip_fraction` (the share of entries
        without gradient because of a clip).

    Raises:
        ShapeError: Shapes or dtypes do not fit.
        ConfigError: A range is out of bounds.

    Reference:
        PPO (arXiv 1707.06347), equation 7; GRPO (2402.03300); Flow-GRPO (2505.05470); DAPO (2503.14476) for
        clip-higher; Ye et al. (1912.09729) for the dual clip.
    """
    clip_high = clip_low if clip_high is None else clip_high
    if not 0 < clip_low < 1:
        raise ConfigError(
            f"`clip_low` must lie in (0, 1), got {clip_low}; try 0.2 (tokens) or 1e-4 (latents)."
        )
    if not clip_high > 0:
        raise ConfigError(f"`clip_high` must be positive, got {clip_high}; try None for `clip_low`.")
    if dual_clip is not None and not dual_clip > 1:
        raise ConfigError(f"`dual_clip` must be above 1, got {dual_clip}; try 3.0, or None.")
    e = entries(log_prob, old_log_prob, advantages, mask, denominator, max_log_ratio)
    ratio, a = e.log_ratio.exp(), e.advantages
    # Written as a choice and not as a maximum of two equal branches: the gradient at ratio one is then exact.
    bound = torch.where(a > 0, 1.0 + clip_high, 1.0 - clip_low)
    clipped = ((a > 0) & (ratio > bound)) | ((a < 0) & (ratio < bound))
    if dual_clip is not None:
        too_far = (a < 0) & (ratio > dual_clip)
        bound = torch.where(too_far, dual_clip, bound)
        clipped = clipped | too_far
    loss = masked_mean(-a * torch.where(clipped, bound, ratio), e.mask, e.denominator)
    metrics = ratio_metrics(e)
    metrics["clip_fraction"] = Metric(masked_mean(clipped.float(), e.mask, e.denominator))
    return loss, metrics


def gspo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    sequence: Tensor,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    mask: Tensor | None = None,
    denominator: float | Tensor | None = None,
    max_log_ratio: float = MAX_LOG_RATIO,
) -> tuple[Tensor, dict[str, Metric]]:
    """`grpo_loss` of sequences: the ratio is `s = exp(mean over tokens of log_prob - old_log_prob)`.

    `s` is the geometric mean of the tokens' ratios, a root of the sequence's own likelihood ratio, so it lies
    much nearer to 1 than they do and wants a narrow range. At ratio one the gradient is the policy gradient
    with the weights of `token_weights(lengths, "sequence_mean")`.

    Args:
        log_prob: `[N]` of tokens of any number of sequences under the policy being trained, with gradient.
        old_log_prob: `[N]`, under the policy that sampled.
        advantages: `[N]`, the same for all tokens of a sequence.
        sequence: `[N]` int64, which sequence each token is of; any numbers, in any order. A sequence that is
            cut into two calls counts as two.
        clip_low: How far s may fall below 1 before a negative advantage stops pushing; in (0, 1).
        clip_high: How far s may rise above 1.
        mask: `[N]` bool; tokens that are trained. None trains all.
        denominator: Sequences with trained tokens of the whole optimizer step; None counts these.
        max_log_ratio: Where ln s is cut, in nats per token; beyond it a sequence has no gradient. It guards
            against overflow and is no trust region.

    Returns:
        The loss, and `ratio_mean`, `ratio_max_deviation`, `approx_kl`, `clip_fraction`, all of sequences.

    Raises:
        ShapeError: Shapes or dtypes do not fit.
        ContractError: Advantages differ within a sequence.
        ConfigError: A range is out of bounds.

    Reference:
        GSPO (arXiv 2507.18071), equations 5 to 7.
    """
    require_floating("log_prob", log_prob)
    if log_prob.ndim != 1 or log_prob.numel() == 0:
        raise ShapeError(
            f"`log_prob` must be [N] tokens and not empty, got {list(log_prob.shape)}; "
            "try log_prob[mask], and as much for the others."
        )
    for name, tensor in (("old_log_prob", old_log_prob), ("advantages", advantages)):
        require_floating(name, tensor)
        require_shape(name, tensor, log_prob.shape, "log_prob")
    if sequence.dtype != torch.int64:
        raise ShapeError(f"`sequence` must be int64, got {sequence.dtype}; try sequence.long().")
    require_shape("sequence", sequence, log_prob.shape, "log_prob")
    mask, _ = mask_and_denominator(mask, None, log_prob, "log_prob")

    names, place = torch.unique(sequence, return_inverse=True)
    zeros = torch.zeros(len(names), device=log_prob.device)
    lengths = zeros.index_add(0, place, mask.float())
    old = torch.where(mask, old_log_prob.detach().float(), 0.0)
    log_ratio = torch.where(mask, log_prob.float(), 0.0) - old
    log_ratio = zeros.index_add(0, place, log_ratio) / lengths.clamp_min(1)
    advantages = torch.where(mask, advantages.detach().float(), 0.0)
    shared = zeros.index_add(0, place, advantages) / lengths.clamp_min(1)
    if bool((mask & ((advantages - shared[place]).abs() > 1e-4 * (1.0 + advantages.abs()))).any()):
        raise ContractError(
            "`advantages` must be the same for all tokens of a sequence, got different ones; "
            "try the advantage of each episode, without weights of tokens."
        )
    return grpo_loss(
        log_ratio,
        zeros,
        shared,
        clip_low=clip_low,
        clip_high=clip_high,
        mask=lengths > 0,
        denominator=denominator,
        max_log_ratio=max_log_ratio,
    )


def token_weights(
    lengths: Tensor, aggregate: str = "token_mean", horizon: int | None = None
) -> tuple[Tensor, float]:
    """Weights and the denominator with which a sum over tokens is the wanted mean.

    The mean is `sum over sequences b of weight[b] * (sum over its tokens of the loss) / denominator`:

    - "token_mean": of all tokens (DAPO). A long sequence counts more than a short one.
    - "sequence_mean": of the sequences' own means (GRPO). Each token of a long sequence counts less.
    - "horizon": of the sequences' sums over a constant (Dr. GRPO), so that a token counts the same in every
      sequence and every batch.

    Losses that are proportional to the advantage (all but `gspo_loss`, which counts sequences by itself) take
    `weight * advantages` and the denominator. It divides the sums over tokens in their metrics, too: times
    `denominator / lengths.sum()` they are means over tokens again.

    Args:
        lengths: `[B]` integers: trained tokens of each sequence of the whole optimizer step. A sequence of
            length 0 (all masked out) counts nowhere.
        aggregate: One of the above.
        horizon: The constant of "horizon", often the length limit; the others ignore it.

    Returns:
        `[B]` float32 weights, and the denominator of the optimizer step, at least 1.

    Raises:
        ShapeError: `lengths` is not `[B]` integers of at least 0.
        ConfigError: An unknown aggregate, or no horizon where it is needed.

    Reference:
        GRPO (arXiv 2402.03300), equation 3; DAPO (2503.14476), equation 8; Dr. GRPO (2503.20783), section 3.
    """
    require_choice("aggregate", aggregate, ("token_mean", "sequence_mean", "horizon"))
    if aggregate == "horizon" and not (horizon or 0) > 0:
        raise ConfigError(
            f"`horizon` must be positive for aggregate 'horizon', got {horizon}; try the limit of new tokens."
        )
    if lengths.ndim != 1 or lengths.is_floating_point() or bool((lengths < 0).any()):
        raise ShapeError(
            f"`lengths` must be [B] integers of at least 0, got {lengths.dtype} {list(lengths.shape)}; "
            "try mask.sum(1)."
        )
    weight = torch.ones(lengths.shape, device=lengths.device)
    sequences = int((lengths > 0).sum())
    if aggregate == "token_mean":
        return weight, float(max(1, int(lengths.sum())))
    if aggregate == "sequence_mean":
        return weight / lengths.clamp_min(1), float(max(1, sequences))
    return weight, float(max(1, sequences * (horizon or 0)))
