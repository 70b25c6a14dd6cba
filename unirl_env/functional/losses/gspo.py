"""GSPO: the clipped surrogate of whole sequences."""

from __future__ import annotations

import torch
from torch import Tensor

from unirl_env.errors import ContractError, ShapeError
from unirl_env.functional.losses.grpo import grpo_loss
from unirl_env.functional.losses.terms import MAX_LOG_RATIO, mask_and_denominator
from unirl_env.functional.require import require_floating, require_shape

__all__ = ["gspo_loss"]


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
) -> tuple[Tensor, dict[str, Tensor]]:
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
