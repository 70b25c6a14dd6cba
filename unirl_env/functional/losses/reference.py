"""The pull towards a reference policy: exact for latents, estimated from the sampled tokens for texts."""

from __future__ import annotations

import torch
from torch import Tensor

from unirl_env.errors import ShapeError
from unirl_env.functional.checks import require_choice, require_floating, require_shape
from unirl_env.functional.divergences import gaussian_kl
from unirl_env.functional.losses.terms import (
    MAX_LOG_RATIO,
    mask_and_denominator,
    masked_mean,
    require_positive_std,
)

__all__ = ["reference_kl", "token_reference_kl"]


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


def token_reference_kl(
    log_prob: Tensor,
    ref_log_prob: Tensor,
    *,
    estimator: str = "k3",
    mask: Tensor | None = None,
    denominator: float | Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Average over sampled tokens of an estimate of KL(pi, ref); add `beta` times it to a loss.

    With `d = log_prob - ref_log_prob` of tokens that pi itself sampled:

    | estimator | value | its mean | mean of its gradient |
    |---|---|---|---|
    | "k1" | d | KL(pi, ref); may be negative | 0: it does not pull at all, use it as a metric |
    | "k2" | d^2 / 2 | near KL(pi, ref) for small d | that of KL(pi, ref), exactly |
    | "k3" | exp(-d) - 1 + d | KL(pi, ref); never negative | that of KL(ref, pi), which is the same near ref |

    So "k2" pulls as the divergence itself does, and "k3", the usual choice, as the reversed one: with at most
    1 on tokens that became likelier than in ref, exponentially on those that became rarer (none below d =
    -20, where it would no longer be finite).

    Args:
        log_prob: `[B]` or `[B, S]` under the policy being trained, with gradient.
        ref_log_prob: As `log_prob`, under the reference policy (the same network with its adapters off).
        estimator: "k1", "k2" or "k3".
        mask: Bool as `log_prob`; None takes all.
        denominator: Unmasked tokens of the whole optimizer step; None counts these.
        weight: As `log_prob` or `[B]`, what a token counts, from `token_weights`; None counts all alike.

    Returns:
        A scalar.

    Raises:
        ShapeError: Shapes or dtypes do not fit.
        ConfigError: An unknown estimator.

    Reference:
        Schulman, Approximating KL Divergence (joschu.net/blog/kl-approx.html); GRPO (arXiv 2402.03300),
        equation 4, for "k3".
    """
    require_choice("estimator", estimator, ("k1", "k2", "k3"))
    require_floating("log_prob", log_prob)
    require_floating("ref_log_prob", ref_log_prob)
    if not 1 <= log_prob.ndim <= 2:
        raise ShapeError(f"`log_prob` must be [B] or [B, S], got {list(log_prob.shape)}; try log_prob[mask].")
    require_shape("ref_log_prob", ref_log_prob, log_prob.shape, "log_prob")
    mask, denominator = mask_and_denominator(mask, denominator, log_prob, "log_prob")
    d = torch.where(mask, log_prob.float(), 0.0) - torch.where(mask, ref_log_prob.detach().float(), 0.0)
    if estimator == "k1":
        value = d
    elif estimator == "k2":
        value = d.square() / 2.0
    else:
        d = d.clamp_min(-MAX_LOG_RATIO)
        value = torch.expm1(-d) + d
    if weight is not None:
        require_floating("weight", weight)
        if weight.ndim == 1 and log_prob.ndim == 2 and len(weight) == len(log_prob):
            weight = weight[:, None].expand_as(log_prob)
        require_shape("weight", weight, log_prob.shape, "log_prob")
        value = value * torch.where(mask, weight.detach().float(), 0.0)
    return masked_mean(value, mask, denominator)
