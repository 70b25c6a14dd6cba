"""GRPO's clipped surrogate, for tokens and for latents."""

from __future__ import annotations

import torch
from torch import Tensor

from unirl_env.errors import ConfigError
from unirl_env.functional.losses.terms import MAX_LOG_RATIO, entries, masked_mean, ratio_metrics

__all__ = ["grpo_loss"]


def grpo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float | None = None,
    mask: Tensor | None = None,
    denominator: float | Tensor | None = None,
    dual_clip: float | None = None,
    max_log_ratio: float = MAX_LOG_RATIO,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))` with `r = exp(log_prob - old_log_prob)`.

    On tokens usual ranges are 0.2 and, for `clip_high` (DAPO's clip-higher), 0.28. On latents the
    log-probability is a mean over D elements, so r is the D-th root of a likelihood ratio and very near 1:
    usual ranges are 1e-4 to 1e-5. A range of c lets the joint likelihood ratio move by about c D nats
    (exactly -D ln(1 - c) down and D ln(1 + c) up), so the same c means 6.6 nats for SD3 at 512 x 512 and 26
    at 1024; `nats_to_mean` gives the c of a range in nats. With k the mean-reduced KL divergence of the two
    policies, ln r is about -k +- sqrt(2 k / D).

    Args:
        log_prob: `[B]` or `[B, S]` under the policy being trained, with gradient.
        old_log_prob: As `log_prob`, under the policy that sampled.
        advantages: As `log_prob`, or `[B]`.
        clip_low: How far r may fall below 1 before a negative advantage stops pushing; in (0, 1).
        clip_high: How far r may rise above 1; None is `clip_low`.
        mask: Bool as `log_prob`; entries that are trained. None trains all.
        denominator: Unmasked entries of the whole optimizer step; None counts these. Dr. GRPO's fixed horizon
            is a denominator as well.
        dual_clip: Above 1: bounds the loss of an entry with a negative advantage by `-A dual_clip`, so that a
            ratio that has run away does not dominate. None leaves it unbounded.
        max_log_ratio: Where ln r is cut, on the scale of the log-probabilities (nats per token, or per
            element of a latent); beyond it an entry has no gradient. It guards against overflow and is no
            trust region.

    Returns:
        The loss, and `ratio_mean`, `ratio_max_deviation`, `approx_kl`, `clip_fraction` (the share of entries
        without gradient because of a clip).

    Raises:
        ShapeError: Shapes or dtypes do not fit.
        ConfigError: A range is out of bounds.

    Reference:
        PPO (arXiv 1707.06347), equation 7; GRPO (2402.03300); Flow-GRPO (2505.05470); DAPO (2503.14476) for
        clip-higher; Ye et al. (1912.09729) for the dual clip.
    """
    clip_high = clip_low if clip_high is None else clip_high
    if not 0 < clip_low < 1:
        raise ConfigError(
            f"`clip_low` must lie in (0, 1), got {clip_low}; try 0.2 (tokens) or 1e-4 (latents)."
        )
    if not clip_high > 0:
        raise ConfigError(f"`clip_high` must be positive, got {clip_high}; try None for `clip_low`.")
    if dual_clip is not None and not dual_clip > 1:
        raise ConfigError(f"`dual_clip` must be above 1, got {dual_clip}; try 3.0, or None.")
    e = entries(log_prob, old_log_prob, advantages, mask, denominator, max_log_ratio)
    ratio, a = e.log_ratio.exp(), e.advantages
    # Written as a choice and not as a maximum of two equal branches: the gradient at ratio one is then exact.
    bound = torch.where(a > 0, 1.0 + clip_high, 1.0 - clip_low)
    clipped = ((a > 0) & (ratio > bound)) | ((a < 0) & (ratio < bound))
    if dual_clip is not None:
        too_far = (a < 0) & (ratio > dual_clip)
        bound = torch.where(too_far, dual_clip, bound)
        clipped = clipped | too_far
    loss = masked_mean(-a * torch.where(clipped, bound, ratio), e.mask, e.denominator)
    metrics = ratio_metrics(e)
    metrics["clip_fraction"] = masked_mean(clipped.float(), e.mask, e.denominator)
    return loss, metrics
