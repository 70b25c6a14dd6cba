"""GRPO-Guard: a clip of the ratio that treats rising and falling alike, at every step of a path."""

from __future__ import annotations

import torch
from torch import Tensor

from unirl_env.functional.divergences import gaussian_kl
from unirl_env.functional.losses.ratio import (
    MAX_LOG_RATIO,
    Metric,
    entries,
    grpo_loss,
    masked_mean,
    ratio_metrics,
    require_positive_std,
)
from unirl_env.functional.require import require_floating, require_lead, require_shape


def guard_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    mean: Tensor,
    old_mean: Tensor,
    std: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float | None = None,
    scale: Tensor | None = None,
    mask: Tensor | None = None,
    denominator: float | Tensor | None = None,
    max_log_ratio: float = MAX_LOG_RATIO,
) -> tuple[Tensor, dict[str, Metric]]:
    """`scale` times `grpo_loss` of the centred ratio q: `ln q = std (ln r + k)`, k the mean-reduced KL.

    On latents ln r of samples of the old policy has the mean -k and the deviation `sqrt(2 k / D)`: from two
    nats on (k = 2 / D) the mean is more than a deviation below 0, and a clip rarely stops a positive
    advantage. With e the noise that was drawn and b = mean - old_mean, `ln q = <e b>`, whose mean is 0 and
    whose variance is `<b^2> / D`, without std: one clip range fits all steps.

    At ratio one the gradient with respect to a velocity is `A e` times how far the step pushes by it, over D:
    a push of `(1 + g^2 (1 - s) / 2s) (s - s')` on the "flow" kernel. `scale = 1 / (s - s')`, as published,
    leaves neither std nor the step's length in it. `step_weights(1 / (s - s'), mask)` is that over its mean
    over the trained steps, so that the learning rate keeps its meaning. Each row has its own std and scale.

    The gradient flows through both parts of ln q: it moves the mean along `e`, of the old policy's noise, and
    not along the distance of the sample from the present mean.

    Args:
        log_prob: `[B]` or `[B, S]` under the policy being trained, mean-reduced, with gradient.
        old_log_prob: As `log_prob`, under the policy that sampled.
        mean: `[*log_prob.shape, ...]` of the policy being trained, with gradient.
        old_mean: As `mean`, of the policy that sampled.
        std: As `log_prob`, of these steps; positive wherever `mask` is True.
        advantages: As `log_prob`, or `[B]`.
        clip_low: How far q may fall below 1 before a negative advantage stops pushing; in (0, 1). It is on
            the scale of a mean in latent units, about std times that of `grpo_loss`; published: 2e-6.
        clip_high: How far q may rise above 1; None is `clip_low`.
        scale: As `log_prob`, a positive factor of each row; None is 1.
        mask: Bool as `log_prob`; entries that are trained. None trains all.
        denominator: Unmasked entries of the whole optimizer step; None counts these.
        max_log_ratio: Where ln q is cut; beyond it an entry has no gradient.

    Returns:
        The loss, and `ratio_mean`, `ratio_max_deviation`, `approx_kl` (of r), `kl` and `kl_max` (exact,
        mean-reduced), `centred_ratio_mean` and `centred_ratio_max_deviation` (of q), `clip_fraction`.

    Raises:
        ShapeError: Shapes or dtypes do not fit.
        ContractError: `std` is 0 in an unmasked entry.
        ConfigError: A range is out of bounds.

    Reference:
        GRPO-Guard (arXiv 2510.22319), RatioNorm and the reweighted gradient.
    """
    e = entries(log_prob, old_log_prob, advantages, mask, denominator, max_log_ratio)
    require_floating("std", std)
    require_shape("std", std, log_prob.shape, "log_prob")
    require_floating("mean", mean)
    require_lead("std", std, mean, "mean")
    require_floating("old_mean", old_mean)
    require_shape("old_mean", old_mean, mean.shape, "mean")
    std = require_positive_std(std, e.mask)
    wide = e.mask.reshape(e.mask.shape + (1,) * (mean.ndim - e.mask.ndim))
    kl = gaussian_kl(torch.where(wide, mean, 0.0), torch.where(wide, old_mean.detach(), 0.0), std)
    log_ratio = torch.where(e.mask, log_prob.float(), 0.0) - e.old_log_prob
    weighted = e.advantages
    if scale is not None:
        require_floating("scale", scale)
        require_shape("scale", scale, log_prob.shape, "log_prob")
        weighted = weighted * torch.where(e.mask, scale.detach().float(), 0.0)
    loss, centred = grpo_loss(
        std * (log_ratio + kl),
        torch.zeros_like(e.old_log_prob),
        weighted,
        clip_low=clip_low,
        clip_high=clip_high,
        mask=e.mask,
        denominator=e.denominator,
        max_log_ratio=max_log_ratio,
    )
    metrics = ratio_metrics(e)
    metrics["kl"] = Metric(masked_mean(kl.detach(), e.mask, e.denominator))
    metrics["kl_max"] = Metric(kl.detach().max(), "max")
    for name in ("ratio_mean", "ratio_max_deviation"):
        metrics[f"centred_{name}"] = centred[name]
    metrics["clip_fraction"] = centred["clip_fraction"]
    return loss, metrics
