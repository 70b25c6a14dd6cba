"""The plain policy gradient, with the ratio of the policies or without."""

from __future__ import annotations

import torch
from torch import Tensor

from unirl_env.functional.losses.ratio import MAX_LOG_RATIO, Metric, entries, masked_mean, ratio_metrics


def pg_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    *,
    ratio: bool = True,
    mask: Tensor | None = None,
    denominator: float | Tensor | None = None,
    max_log_ratio: float = MAX_LOG_RATIO,
) -> tuple[Tensor, dict[str, Metric]]:
    """`-A r` with `r = exp(log_prob - old_log_prob)`, or without the ratio `-A (log_prob - old_log_prob)`.

    It is what `grpo_loss` is where its clip never acts, and nothing holds the policy near the old one. On
    minus a `surrogate` as the log-probability it is the ELBO policy gradient (EPG): the form in which that is
    published, `-sg(r) A log_prob`, has the same gradient, `-A r` times that of `log_prob`, and another value.

    Args:
        log_prob: `[B]` or `[B, S]` under the policy being trained, with gradient.
        old_log_prob: As `log_prob`, under the policy that sampled.
        advantages: As `log_prob`, or `[B]`.
        ratio: Whether entries are weighted by r, which corrects for the policy that sampled. Without, every
            epoch after the first is biased, and no entry runs away.
        mask: Bool as `log_prob`; entries that are trained. None trains all.
        denominator: Unmasked entries of the whole optimizer step; None counts these.
        max_log_ratio: Where ln r is cut, on the scale of the log-probabilities; beyond it an entry has no
            gradient, unless `ratio` is False.

    Returns:
        The loss, and `ratio_mean`, `ratio_max_deviation`, `approx_kl`.

    Raises:
        ShapeError: Shapes or dtypes do not fit.
        ConfigError: `max_log_ratio` is out of range.

    Reference:
        Williams, REINFORCE (1992); PPO (arXiv 1707.06347), equation 6; arXiv 2602.04663 for EPG.
    """
    e = entries(log_prob, old_log_prob, advantages, mask, denominator, max_log_ratio)
    if ratio:
        terms = -e.advantages * e.log_ratio.exp()
    else:
        terms = -e.advantages * (torch.where(e.mask, log_prob.float(), 0.0) - e.old_log_prob)
    return masked_mean(terms, e.mask, e.denominator), ratio_metrics(e)
