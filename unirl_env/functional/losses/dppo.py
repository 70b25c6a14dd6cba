"""DPPO: the policy gradient of tokens within a trust region told by a divergence of two cells."""

from __future__ import annotations

import torch
from torch import Tensor

from unirl_env.errors import ConfigError
from unirl_env.functional.losses.ratio import (
    MAX_LOG_RATIO,
    Metric,
    entries,
    masked_mean,
    outwards,
    ratio_metrics,
    require_token_log_prob,
)
from unirl_env.functional.require import require_choice

NEAREST_TO_ONE = -(2.0**-24)  # a float32 log-probability of 0 tells no more of the other tokens than this


def dppo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    *,
    threshold: float = 0.15,
    divergence: str = "tv",
    mask: Tensor | None = None,
    denominator: float | Tensor | None = None,
    max_log_ratio: float = MAX_LOG_RATIO,
) -> tuple[Tensor, dict[str, Metric]]:
    """`-A r`, with 0 for tokens that are outside the trust region and would move further out.

    The divergence is that of the two-cell partition {the sampled token, all others}, with probabilities mu
    (old) and pi (new) of the token; it is a lower bound of the divergence of the whole distributions:

    - "tv": `|pi - mu|`.
    - "kl": `mu log(mu / pi) + (1 - mu) log((1 - mu) / (1 - pi))`.

    A token is dropped if its policies are more than `threshold` apart *and* its gradient widens the gap: r >
    1 with A > 0, or r < 1 with A < 0. Dropped tokens count as zero and stay in the denominator. A clip of the
    ratio stops rare tokens early and likely ones late: from 0.001 to 0.01 is a ratio of 10 and a shift of
    0.009, from 0.99 to 0.75 a ratio of 0.76 and a shift of 0.24.

    Args:
        log_prob: `[B]` or `[B, S]` of the sampled tokens under the policy being trained, with gradient.
        old_log_prob: As `log_prob`, under the policy that sampled; at most 0.
        advantages: As `log_prob`, or `[B]`.
        threshold: Largest divergence of the trust region; positive. Published: 0.15 for "tv", 0.05 for "kl".
        divergence: "tv" or "kl".
        mask: Bool as `log_prob`; tokens that are trained. None trains all.
        denominator: Unmasked tokens of the whole optimizer step; None counts these.
        max_log_ratio: Where log-ratios are cut, in nats of a token; beyond it an entry has no gradient. It
            guards against overflow and is no trust region.

    Returns:
        The loss, and `ratio_mean`, `ratio_max_deviation`, `approx_kl`, `tv` and `tv_max` or `kl` and `kl_max`
        (of the two cells), `masked_fraction` (the share of dropped tokens).

    Raises:
        ShapeError: Shapes or dtypes do not fit.
        ContractError: `old_log_prob` is no log-probability of a token.
        ConfigError: `threshold` or `max_log_ratio` is out of range, or `divergence` is unknown.

    Reference:
        DPPO (arXiv 2602.04879), the binary approximations.
    """
    require_choice("divergence", divergence, ("tv", "kl"))
    if not threshold > 0:
        raise ConfigError(f"`threshold` must be positive, got {threshold}; try 0.15 (tv) or 0.05 (kl).")
    e = entries(log_prob, old_log_prob, advantages, mask, denominator, max_log_ratio)
    require_token_log_prob(e)
    new = torch.where(e.mask, log_prob.detach().float(), 0.0)
    apart = (_binary_tv if divergence == "tv" else _binary_kl)(new, e.old_log_prob)
    dropped = e.mask & (apart > threshold) & outwards(e)
    terms = torch.where(dropped, 0.0, -e.advantages * e.log_ratio.exp())
    metrics = ratio_metrics(e)
    metrics[divergence] = Metric(masked_mean(apart, e.mask, e.denominator))
    metrics[f"{divergence}_max"] = Metric(apart.max(), "max")
    metrics["masked_fraction"] = Metric(masked_mean(dropped.float(), e.mask, e.denominator))
    return masked_mean(terms, e.mask, e.denominator), metrics


def _binary_tv(new: Tensor, old: Tensor) -> Tensor:
    return _shift(new, old).abs()


def _binary_kl(new: Tensor, old: Tensor) -> Tensor:
    new, old = (log_prob.clamp_max(NEAREST_TO_ONE) for log_prob in (new, old))
    rest, new_rest = -torch.expm1(old), -torch.expm1(new)
    # Near pi = mu the two terms of the divergence cancel unless both come from the shift pi - mu.
    moved = _shift(new, old) / rest
    log_rest_ratio = torch.where(moved.abs() < 0.5, torch.log1p(-moved), torch.log(new_rest / rest))
    return (old.exp() * (old - new) - rest * log_rest_ratio).clamp_min(0.0)


def _shift(new: Tensor, old: Tensor) -> Tensor:
    """`exp(new) - exp(old)` without cancellation and without overflow."""
    new, old = new.clamp_max(0.0), old.clamp_max(0.0)
    gap = new - old
    return -gap.sign() * torch.expm1(-gap.abs()) * torch.maximum(new, old).exp()
