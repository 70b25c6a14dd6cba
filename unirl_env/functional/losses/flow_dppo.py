"""Flow-DPPO: the policy gradient within a trust region told by the exact divergence of Gaussians."""

from __future__ import annotations

import torch
from torch import Tensor

from unirl_env.errors import ConfigError
from unirl_env.functional.divergences import gaussian_kl
from unirl_env.functional.losses.ratio import (
    MAX_LOG_RATIO,
    Entries,
    Metric,
    entries,
    masked_mean,
    outwards,
    ratio_metrics,
    require_positive_std,
)
from unirl_env.functional.require import require_choice, require_floating, require_shape


def flow_dppo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    mean: Tensor,
    old_mean: Tensor,
    std: Tensor,
    advantages: Tensor,
    *,
    kl_threshold: float,
    direction: str = "published",
    mask: Tensor | None = None,
    denominator: float | Tensor | None = None,
    max_log_ratio: float = MAX_LOG_RATIO,
) -> tuple[Tensor, dict[str, Metric]]:
    """`-A r`, with 0 for entries that are outside the trust region and would move further out.

    An entry is dropped if its policies are at least `kl_threshold` apart *and* its gradient leads further
    out. Dropped entries count as zero and stay in the denominator. Whether it is outside is told by the exact
    divergence k (mean-reduced); which way its gradient leads, by `direction`:

    - "published": `A ln r > 0`, the ratio moves further from 1: r > 1 with A > 0, or r < 1 with A < 0.
    - "exact": `A (ln r - k) > 0`, the divergence grows.

    Where they differ. The gradient of an entry moves the mean along `A (x' - mean)`, and k grows as the mean
    moves along `mean - old_mean`: k of this entry grows exactly where A times `p = <(x' - mean) (mean -
    old_mean)> / std^2` is positive. The two factors add up to `x' - old_mean`, so `ln r = p + k`, and the
    exact rule asks for the sign of p. (Under old samples p is -2 k on average: most entries with A > 0 lead
    back, most with A < 0 lead out.) Where 0 < ln r < k, "published" drops an entry with A > 0 though it leads
    back, and lets one with A < 0 pass though it leads out. Under old samples that happens with probability
    `Phi(sqrt(2 K)) - Phi(sqrt(K / 2))`, K the joint divergence in nats: 3 % at 0.01, 16 % at 0.66 (the most
    there is is 16.1 %, at 0.92), 2 % at 8.

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
        direction: "published" or "exact". The latter takes log-probabilities that are means over elements, as
            `kl_threshold` does anyway.
        mask: Bool as `log_prob`; entries that are trained. None trains all.
        denominator: Unmasked entries of the whole optimizer step; None counts these.
        max_log_ratio: Where log-ratios are cut, in nats per element; beyond it an entry has no gradient. It
            guards against overflow and is no trust region.

    Returns:
        The loss, and `ratio_mean`, `ratio_max_deviation`, `approx_kl`, `kl` and `kl_max` (exact,
        mean-reduced), `masked_fraction` (the share of dropped entries).

    Raises:
        ShapeError: Shapes or dtypes do not fit.
        ContractError: `std` is 0 in an unmasked entry.
        ConfigError: `kl_threshold` or `max_log_ratio` is out of range, or `direction` is unknown.

    Reference:
        Flow-DPPO (arXiv 2606.11025); DPPO (2602.04879) for the asymmetric mask.
    """
    require_choice("direction", direction, ("published", "exact"))
    if not kl_threshold > 0:
        raise ConfigError(f"`kl_threshold` must be positive, got {kl_threshold}; try nats_to_mean(0.66, D).")
    e = entries(log_prob, old_log_prob, advantages, mask, denominator, max_log_ratio)
    require_floating("std", std)
    require_shape("std", std, log_prob.shape, "log_prob")
    std = require_positive_std(std, e.mask)
    kl = torch.where(e.mask, gaussian_kl(mean.detach(), old_mean.detach(), std), 0.0)
    dropped = e.mask & (kl >= kl_threshold) & _leads_out(e, kl, direction)
    terms = torch.where(dropped, 0.0, -e.advantages * e.log_ratio.exp())
    metrics = ratio_metrics(e)
    metrics["kl"] = Metric(masked_mean(kl, e.mask, e.denominator))
    metrics["kl_max"] = Metric(kl.max(), "max")
    metrics["masked_fraction"] = Metric(masked_mean(dropped.float(), e.mask, e.denominator))
    return masked_mean(terms, e.mask, e.denominator), metrics


def _leads_out(e: Entries, kl: Tensor, direction: str) -> Tensor:
    if direction == "published":
        return outwards(e)
    return (e.log_ratio.detach() - kl).sign() * e.advantages.sign() > 0
