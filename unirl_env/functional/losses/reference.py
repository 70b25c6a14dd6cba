"""The pull towards a reference policy, as an exact divergence."""

from __future__ import annotations

import torch
from torch import Tensor

from unirl_env.functional.checks import require_floating
from unirl_env.functional.divergences import gaussian_kl
from unirl_env.functional.losses.terms import mask_and_denominator, masked_mean, require_positive_std

__all__ = ["reference_kl"]


def reference_kl(
    mean: Tensor,
    ref_mean: Tensor,
    std: Tensor,
    mask: Tensor | None = None,
    denominator: float | Tensor | None = None,
    *,
    reduction: str = "mean",
) -> Tensor:
    """Average over steps of the exact KL divergence to a reference policy; add `beta` times it to a loss.

    The variance is the sampler's, so it includes the length of the step. (Flow-GRPO's original code divides
    by the squared diffusion coefficient without it; its `beta` corresponds to `beta * (sigma - sigma_next)`
    here.)

    Args:
        mean: `[*lead, ...]` of the policy being trained, with gradient.
        ref_mean: As `mean`, of the reference policy (the same network with its adapters off).
        std: `[*lead]`, [B] or [B, S]: what `sde_step` returned; positive wherever `mask` is True.
        mask: Bool `[*lead]`; None takes all.
        denominator: Unmasked entries of the whole optimizer step; None counts these.
        reduction: "mean" per element, or "sum" for nats.

    Returns:
        A scalar.

    Raises:
        ShapeError: Shapes or dtypes do not fit.
        ContractError: `std` is 0 in an unmasked entry.

    Reference:
        Flow-GRPO (arXiv 2505.05470), the KL divergence in closed form.
    """
    require_floating("std", std)
    mask, denominator = mask_and_denominator(mask, denominator, std, "std")
    std = require_positive_std(std, mask)
    wide = mask.reshape(mask.shape + (1,) * (mean.ndim - mask.ndim))
    mean = torch.where(wide, mean, 0.0)
    ref_mean = torch.where(wide, ref_mean.detach(), 0.0)
    return masked_mean(gaussian_kl(mean, ref_mean, std, reduction=reduction), mask, denominator)
