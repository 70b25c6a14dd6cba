"""How much a token counts, in sequences of unequal lengths."""

from __future__ import annotations

import torch
from torch import Tensor

from unirl_env.errors import ConfigError, ShapeError
from unirl_env.functional.require import require_choice

__all__ = ["token_weights"]


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
