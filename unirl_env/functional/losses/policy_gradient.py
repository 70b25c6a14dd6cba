"""The plain policy gradient, with the ratio of the policies or without, and with a pull to the old one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unirl_env.errors import ConfigError
from unirl_env.functional.losses.ratio import MAX_LOG_RATIO, Metric, entries, masked_mean, ratio_metrics
from unirl_env.functional.require import require_floating, require_shape


def pg_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    *,
    ratio: bool = True,
    pull: float = 0.0,
    weight_rows: Tensor | None = None,
    mask: Tensor | None = None,
    denominator: float | Tensor | None = None,
    max_log_ratio: float = MAX_LOG_RATIO,
) -> tuple[Tensor, dict[str, Metric]]:
    """`-A r` with `r = exp(log_prob - old_log_prob)`, or without the ratio `-A (log_prob - old_log_prob)`.

    It is what `grpo_loss` is where its clip never acts, and nothing holds the policy near the old one but a
    `pull`: with `d = log_prob - old_log_prob` it adds `pull sg(r) d^2 / 2`, sg without gradient, so that the
    gradient is `-r (A - pull d)` times that of `log_prob`. The mean of what is added has the gradient of
    `pull KL(new || old)`, and an entry comes to rest where `d = A / pull`, at `p = p_old exp(A / pull)`. With
    `pull=1` it has the gradient of PAR, `sg(r) (A - d)^2 / 2`, and of its proximal form PEPG, `-sg(r) (A -
    sg(d)) log_prob`, everywhere. Where log-probabilities are means over D elements, d is of their scale: an
    advantage of 0.1 then aims at 0.1 D nats with a pull of 1.

    On minus a `surrogate` as the log-probability it is the ELBO policy gradient (EPG): the form in which that
    is published, `-sg(r) A log_prob`, has the same gradient, `-A r` times that of `log_prob`, and another
    value.

    Args:
        log_prob: `[B]` or `[B, S]` under the policy being trained, with gradient.
        old_log_prob: As `log_prob`, under the policy that sampled.
        advantages: As `log_prob`, or `[B]`.
        pull: How strongly entries are held where they were, at least 0, in advantages per unit of d.
        weight_rows: As `log_prob`, what an entry counts; None counts all alike. (The advantage is no such
            factor where there is a pull.)
        ratio: Whether entries are weighted by r, which corrects for the policy that sampled. Without, every
            epoch after the first is biased, and no entry runs away.
        mask: Bool as `log_prob`; entries that are trained. None trains all.
        denominator: Unmasked entries of the whole optimizer step; None counts these.
        max_log_ratio: Where ln r is cut, on the scale of the log-probabilities; beyond it an entry has no
            gradient but that of the pull, unless `ratio` is False.

    Returns:
        The loss, and `ratio_mean`, `ratio_max_deviation`, `approx_kl`.

    Raises:
        ShapeError: Shapes or dtypes do not fit.
        ConfigError: `max_log_ratio` or `pull` is out of range.

    Reference:
        Williams, REINFORCE (1992); PPO (arXiv 1707.06347), equation 6; arXiv 2602.04663 for EPG, PEPG, PAR.
    """
    if not (math.isfinite(pull) and pull >= 0):
        raise ConfigError(f"`pull` must be a number of at least 0, got {pull}; try 0, or 0.3.")
    e = entries(log_prob, old_log_prob, advantages, mask, denominator, max_log_ratio)
    moved = torch.where(e.mask, log_prob.float(), 0.0) - e.old_log_prob
    terms = -e.advantages * (e.log_ratio.exp() if ratio else moved)
    if pull:
        factor = e.log_ratio.detach().exp() if ratio else 1.0
        terms = terms + pull * factor * moved.square() / 2.0
    if weight_rows is not None:
        require_floating("weight_rows", weight_rows)
        require_shape("weight_rows", weight_rows, log_prob.shape, "log_prob")
        terms = terms * torch.where(e.mask, weight_rows.detach().float(), 0.0)
    return masked_mean(terms, e.mask, e.denominator), ratio_metrics(e)
