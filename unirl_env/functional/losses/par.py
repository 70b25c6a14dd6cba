"""PAR: log-ratios regressed on advantages, a policy gradient that stops at its own goal."""

from __future__ import annotations

import torch
from torch import Tensor

from unirl_env.functional.losses.ratio import MAX_LOG_RATIO, Metric, entries, masked_mean, ratio_metrics
from unirl_env.functional.require import require_floating, require_shape


def par_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    *,
    ratio: bool = True,
    weight_rows: Tensor | None = None,
    mask: Tensor | None = None,
    denominator: float | Tensor | None = None,
    max_log_ratio: float = MAX_LOG_RATIO,
) -> tuple[Tensor, dict[str, Metric]]:
    """`sg(r) (A - d)^2 / 2` with `d = log_prob - old_log_prob` and `r = exp(d)`; sg is without gradient.

    Its gradient is `-r (A - d)` times that of `log_prob`: the policy gradient at d = 0, none at d = A, and
    back beyond. The published proximal form (PEPG), `-sg(r) (A - d) log_prob` with no gradient through its d,
    has the same gradient everywhere, so it is not a loss of its own here.

    d = A is where `p = p_old exp(A)`: advantages have the scale of log-ratios (a reward over the strength of
    its KL), not that of standard deviations. Where log-probabilities are means over D elements an advantage
    of 0.1 is 0.1 D nats.

    Args:
        log_prob: `[B]` or `[B, S]` under the policy being trained, with gradient.
        old_log_prob: As `log_prob`, under the policy that sampled.
        advantages: As `log_prob`, or `[B]`: the log-ratios that are aimed at.
        ratio: Whether entries are weighted by r.
        weight_rows: As `log_prob`, what an entry counts; None counts all alike. (The advantage is no such
            factor here.)
        mask: Bool as `log_prob`; entries that are trained. None trains all.
        denominator: Unmasked entries of the whole optimizer step; None counts these.
        max_log_ratio: Where ln r is cut, on the scale of the log-probabilities. d itself is not: an entry
            beyond is led back.

    Returns:
        The loss, and `ratio_mean`, `ratio_max_deviation`, `approx_kl`, `unexplained` (the mean square of A -
        d).

    Raises:
        ShapeError: Shapes or dtypes do not fit.
        ConfigError: `max_log_ratio` is out of range.

    Reference:
        arXiv 2602.04663, on how the likelihood of flow models is estimated: PAR and PEPG.
    """
    e = entries(log_prob, old_log_prob, advantages, mask, denominator, max_log_ratio)
    left = e.advantages - (torch.where(e.mask, log_prob.float(), 0.0) - e.old_log_prob)
    terms = left.square() / 2.0
    if ratio:
        terms = terms * e.log_ratio.detach().exp()
    if weight_rows is not None:
        require_floating("weight_rows", weight_rows)
        require_shape("weight_rows", weight_rows, log_prob.shape, "log_prob")
        terms = terms * torch.where(e.mask, weight_rows.detach().float(), 0.0)
    metrics = ratio_metrics(e)
    metrics["unexplained"] = Metric(masked_mean(left.detach().square(), e.mask, e.denominator))
    return masked_mean(terms, e.mask, e.denominator), metrics
