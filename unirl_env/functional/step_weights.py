"""What the steps of one path count in a policy loss, relative to each other."""

from __future__ import annotations

import torch
from torch import Tensor

from unirl_env.functional.losses.ratio import mask_and_denominator
from unirl_env.functional.require import require_floating


def step_weights(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """`values` over their mean over the trained steps of a path: weights whose mean there is 1.

    - Of the `std` of steps: TempFlow's noise-aware weights. The gradient of a log-probability grows as 1 /
      std, so that late steps, which can change little, push as much as early ones; the weight takes that
      back. The published constant 2.25 is 1 / mean(std) for one schedule: 10 steps at shift 3, eta 0.7.
    - Of `1 / (sigma - sigma_next)`: the factor that GRPO-Guard's loss has before it, without its size
      (`guard_loss(scale=...)`).

    Losses that are proportional to the advantage take the weight as a factor of it.

    Args:
        values: `[..., S]`, at least 0, one for each step; `std` is 0 where a step is deterministic.
        mask: Bool as `values`: steps that are trained. A step of value 0 never is.

    Returns:
        `[..., S]` float32 without gradient, 0 at steps that are not trained.

    Raises:
        ShapeError: Shapes or dtypes do not fit.

    Reference:
        TempFlow-GRPO (arXiv 2508.04324), noise-aware weighting; GRPO-Guard (2510.22319).
    """
    require_floating("values", values)
    mask, _ = mask_and_denominator(mask, None, values, "values")
    trained = mask & (values.detach() > 0)
    kept = torch.where(trained, values.detach().float(), 0.0)
    mean = kept.sum(-1, keepdim=True) / trained.sum(-1, keepdim=True).clamp_min(1)
    return kept / torch.where(mean > 0, mean, 1.0)
