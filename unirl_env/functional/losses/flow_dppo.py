"""Flow-DPPO: the policy gradient within a trust region told by the exact divergence of Gaussians."""

from __future__ import annotations

import torch
from torch import Tensor

from unirl_env.errors import ConfigError
from unirl_env.functional.checks import require_floating, require_shape
from unirl_env.functional.divergences import gaussian_kl
from unirl_env.functional.losses.terms import (
    entries,
    masked_mean,
    outwards,
    ratio_metrics,
    require_positive_std,
)

__all__ = ["flow_dppo_loss"]


def flow_dppo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    mean: Tensor,
    old_mean: Tensor,
    std: Tensor,
    advantages: Tensor,
    *,
    kl_threshold: float,
    mask: Tensor | None = None,
    denominator: float | Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`-A r`, with 0 for entries that are outside the trust region and would move further out.

    An entry is dropped if its policies are at least `kl_threshold` apart *and* its gradient widens the gap: r
    > 1 with A > 0, or r < 1 with A < 0. Steps that lead back always pass. Dropped entries count as zero and
    stay in the denominator. The divergence is exact, unlike the ratio, which is one noisy sample of it.

    Args:
        log_prob: `[B]` or `[B, S]` under the policy being trained, with gradient.
        old_log_prob: As `log_prob`, under the policy that sampled.
        mean: `[*log_prob.shape, ...]` of the policy being trained. Only compared: no gradient flows through
            it.
        old_mean: As `mean`, of the policy that sampled.
        std: As `log_prob`: what `sde_step` returned for these steps, so that the sampler and the trust region
            have one variance. Positive wherever `mask` is True.
        advantages: As `log_prob`, or `[B]`.
        kl_threshold: Mean-reduced KL divergence (`nats_to_mean` converts from nats). For SD3 at 512 x 512,
            1e-5 is 0.66 nats.
        mask: Bool as `log_prob`; entries that are trained. None trains all.
        denominator: Unmasked entries of the whole optimizer step; None counts these.

    Returns:
        The loss, and `ratio_mean`, `ratio_max_deviation`, `approx_kl`, `kl` and `kl_max` (exact,
        mean-reduced), `masked_fraction` (the share of dropped entries).

    Raises:
        ShapeError: Shapes or dtypes do not fit.
        ContractError: `std` is 0 in an unmasked entry.
        ConfigError: `kl_threshold` is not positive.

    Reference:
        Flow-DPPO (arXiv 2606.11025); DPPO (2602.04879) for the asymmetric mask.
    """
    if not kl_threshold > 0:
        raise ConfigError(f"`kl_threshold` must be positive, got {kl_threshold}; try nats_to_mean(0.66, D).")
    e = entries(log_prob, old_log_prob, advantages, mask, denominator)
    require_floating("std", std)
    require_shape("std", std, log_prob.shape, "log_prob")
    std = require_positive_std(std, e.mask)
    kl = torch.where(e.mask, gaussian_kl(mean.detach(), old_mean.detach(), std), 0.0)
    dropped = e.mask & (kl >= kl_threshold) & outwards(e)
    terms = torch.where(dropped, 0.0, -e.advantages * e.log_ratio.exp())
    metrics = ratio_metrics(e)
    metrics["kl"] = masked_mean(kl, e.mask, e.denominator)
    metrics["kl_max"] = kl.max()
    metrics["masked_fraction"] = masked_mean(dropped.float(), e.mask, e.denominator)
    return masked_mean(terms, e.mask, e.denominator), metrics
