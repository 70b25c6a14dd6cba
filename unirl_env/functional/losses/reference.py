"""The pull towards a reference policy: exact for latents, estimated from the sampled tokens for texts."""

from __future__ import annotations

import torch
from torch import Tensor

from unirl_env.errors import ConfigError, ShapeError
from unirl_env.functional.divergences import gaussian_kl
from unirl_env.functional.losses.ratio import (
    MAX_LOG_RATIO,
    mask_and_denominator,
    masked_mean,
    require_max_log_ratio,
    require_positive_std,
)
from unirl_env.functional.require import require_choice, require_floating, require_shape


def reference_kl(
    mean: Tensor,
    ref_mean: Tensor,
    std: Tensor,
    mask: Tensor | None = None,
    denominator: float | Tensor | None = None,
    *,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Average over steps of the exact KL divergence to a reference policy; add `beta` times it to a loss.

    It is exact at every visited state, an expectation over all actions there, so that the sampled action and
    its ratio do not enter: weighted by that ratio, whose mean is 1, it would be the same on average and
    noisier. (The ratio of mean-reduced log-probabilities is a root, whose mean is below 1: it would be wrong
    on average, too.) The states are those which the sampling policy visited; those of the policy being
    trained would need the joint likelihood ratio of all steps before, in nats. And the gradient takes the
    visited states as given: it does not see that a step changes what later steps will pay.

    The variance is the sampler's, so it includes the length of the step. (Flow-GRPO's original code divides
    by the squared diffusion coefficient without it; its `beta` corresponds to `beta * (sigma - sigma_next)`
    here.)

    Args:
        mean: `[*lead, ...]` of the policy being trained, with gradient.
        ref_mean: As `mean`, of the reference policy (the same network with its adapters off).
        std: `[*lead]`, [B] or [B, S]: what `sde_step` returned; positive wherever `mask` is True.
        mask: Bool `[*lead]`; None takes all.
        denominator: Unmasked entries of the whole optimizer step; None counts these.
        weight: `[*lead]`, what an entry counts; None counts all alike.
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
    kl = gaussian_kl(mean, ref_mean, std, reduction=reduction)
    if weight is not None:
        require_floating("weight", weight)
        require_shape("weight", weight, std.shape, "std")
        kl = kl * torch.where(mask, weight.detach().float(), 0.0)
    return masked_mean(kl, mask, denominator)


def token_reference_kl(
    log_prob: Tensor,
    ref_log_prob: Tensor,
    *,
    old_log_prob: Tensor | None = None,
    estimator: str = "k2",
    mask: Tensor | None = None,
    denominator: float | Tensor | None = None,
    weight: Tensor | None = None,
    max_log_ratio: float = MAX_LOG_RATIO,
) -> Tensor:
    """Average over sampled tokens of an estimate of KL(pi, ref); add `beta` times it to a loss.

    With `d = log_prob - ref_log_prob`, each token weighted by `r = exp(log_prob - old_log_prob)` without
    gradient, because another policy may have sampled it. Then, whichever it was:

    | estimator | value | its mean | mean of its gradient |
    |---|---|---|---|
    | "k1" | r d | KL(pi, ref); may be negative | 0: it does not pull at all, so it is refused in a loss |
    | "k2" | r d^2 / 2 | near KL(pi, ref) for small d | that of KL(pi, ref), exactly |
    | "k3" | r (exp(-d) - 1 + d) | KL(pi, ref); never negative | that of KL(ref, pi), the same only near ref |

    So "k2" is the one to train with: it pulls as the divergence itself does. "k3" pulls as the reversed one:
    with at most 1 on tokens that became likelier than in ref, exponentially on those that became rarer (none
    below d = -20, where it would no longer be finite). Its value is the one to report.

    Both hold at each visited context, of the next token. The contexts are those which the sampling policy
    wrote (those of pi would need the product of the ratios of all tokens before), and the gradient takes them
    as given: it does not see that a token changes the KL which later tokens will pay, unless returns are
    charged with it (`charged_advantages`).

    Args:
        log_prob: `[B]` or `[B, S]` under the policy being trained, with gradient.
        ref_log_prob: As `log_prob`, under the reference policy (the same network with its adapters off).
        old_log_prob: As `log_prob`, under the policy that sampled. None if that is the one being trained:
            r is 1.
        estimator: "k1", "k2" or "k3"; "k1" only where no gradient is asked for.
        mask: Bool as `log_prob`; None takes all.
        denominator: Unmasked tokens of the whole optimizer step; None counts these.
        weight: As `log_prob` or `[B]`, what a token counts, from `token_weights`; None counts all alike.
        max_log_ratio: Where ln r is cut, in nats.

    Returns:
        A scalar.

    Raises:
        ShapeError: Shapes or dtypes do not fit.
        ConfigError: An unknown estimator, "k1" of log-probabilities with gradient, or `max_log_ratio` out of
            range.

    Reference:
        Schulman, Approximating KL Divergence (joschu.net/blog/kl-approx.html); GRPO (arXiv 2402.03300),
        equation 4, for "k3".
    """
    require_choice("estimator", estimator, ("k1", "k2", "k3"))
    require_max_log_ratio(max_log_ratio)
    require_floating("log_prob", log_prob)
    require_floating("ref_log_prob", ref_log_prob)
    if not 1 <= log_prob.ndim <= 2:
        raise ShapeError(f"`log_prob` must be [B] or [B, S], got {list(log_prob.shape)}; try log_prob[mask].")
    require_shape("ref_log_prob", ref_log_prob, log_prob.shape, "log_prob")
    if estimator == "k1" and log_prob.requires_grad and torch.is_grad_enabled():
        raise ConfigError(
            "`estimator` must be 'k2' or 'k3' in a loss, got 'k1', whose mean gradient is 0; try 'k2', or "
            "log_prob.detach() to measure."
        )
    mask, denominator = mask_and_denominator(mask, denominator, log_prob, "log_prob")
    new = torch.where(mask, log_prob.float(), 0.0)
    value = _estimate(new - torch.where(mask, ref_log_prob.detach().float(), 0.0), estimator)
    if old_log_prob is not None:
        require_floating("old_log_prob", old_log_prob)
        require_shape("old_log_prob", old_log_prob, log_prob.shape, "log_prob")
        log_ratio = new.detach() - torch.where(mask, old_log_prob.detach().float(), 0.0)
        value = value * log_ratio.clamp(-max_log_ratio, max_log_ratio).exp()
    if weight is not None:
        require_floating("weight", weight)
        if weight.ndim == 1 and log_prob.ndim == 2 and len(weight) == len(log_prob):
            weight = weight[:, None].expand_as(log_prob)
        require_shape("weight", weight, log_prob.shape, "log_prob")
        value = value * torch.where(mask, weight.detach().float(), 0.0)
    return masked_mean(value, mask, denominator)


def _estimate(d: Tensor, estimator: str) -> Tensor:
    if estimator == "k1":
        return d
    if estimator == "k2":
        return d.square() / 2.0
    d = d.clamp_min(-MAX_LOG_RATIO)
    return torch.expm1(-d) + d
