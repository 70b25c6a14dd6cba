"""DRPO: a smooth pull back to the old policy in place of a clip; one form for tokens, one for latents."""

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
    require_token_log_prob,
)
from unirl_env.functional.require import require_floating, require_shape


def drpo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    *,
    epsilon: float = 12.5,
    mask: Tensor | None = None,
    denominator: float | Tensor | None = None,
    max_log_ratio: float = MAX_LOG_RATIO,
) -> tuple[Tensor, dict[str, Metric]]:
    """Tokens: `-A r + |A| mu (r - 1)^2 / (2 epsilon)` with `mu = exp(old_log_prob)` and `pi = mu r`.

    Its gradient is the policy gradient `-A r` times `w = 1 - sign(A (r - 1)) |pi - mu| / epsilon`: entries
    that move away from the old policy count less, and beyond `|pi - mu| = epsilon` are turned back; entries
    that return count more. Because `|pi - mu| <= 1`, all weights lie in [1 - 1/epsilon, 1 + 1/epsilon]: the
    published default of 12.5 reweighs by 8 % at most and never turns an entry back. Only epsilon < 1 gives a
    trust region with a border.

    Args:
        log_prob: `[B]` or `[B, S]` of the sampled tokens under the policy being trained, with gradient.
        old_log_prob: As `log_prob`, under the policy that sampled; at most 0.
        advantages: As `log_prob`, or `[B]`.
        epsilon: Radius of the trust region in probability; positive.
        mask: Bool as `log_prob`; tokens that are trained. None trains all.
        denominator: Unmasked tokens of the whole optimizer step; None counts these.
        max_log_ratio: Where log-ratios are cut, in nats of a token; beyond it an entry has no gradient. It
            guards against overflow and is no trust region.

    Returns:
        The loss, and `ratio_mean`, `ratio_max_deviation`, `approx_kl`, `tv` (mean of `|pi - mu|`),
        `corrective_fraction` (the share of entries that are turned back).

    Raises:
        ShapeError: Shapes or dtypes do not fit.
        ContractError: `old_log_prob` is no log-probability of a token.
        ConfigError: `epsilon` or `max_log_ratio` is out of range.

    Reference:
        DRPO (arXiv 2606.09821).
    """
    _require_epsilon(epsilon)
    e = entries(log_prob, old_log_prob, advantages, mask, denominator, max_log_ratio)
    require_token_log_prob(e)
    mu, excess = e.old_log_prob.exp(), torch.expm1(e.log_ratio)
    size = e.advantages.abs()
    terms = -e.advantages * e.log_ratio.exp() + size * mu * excess.square() / (2.0 * epsilon)
    shift = mu * excess.detach().abs()
    return masked_mean(terms, e.mask, e.denominator), ratio_metrics(e) | _shift_metrics(e, shift, epsilon)


def drpo_gaussian_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    mean: Tensor,
    old_mean: Tensor,
    std: Tensor,
    advantages: Tensor,
    *,
    epsilon: float = 0.5,
    mask: Tensor | None = None,
    denominator: float | Tensor | None = None,
    max_log_ratio: float = MAX_LOG_RATIO,
) -> tuple[Tensor, dict[str, Metric]]:
    """Latents: `-A r + |A| (TV / epsilon) |r - 1|`, with TV the total variation of the two policies.

    TV is a coefficient here: no gradient flows through it.

    Derivation. On a token, `pi - mu` is the change of probability of one cell of the partition {the sampled
    token, all others}. A latent has no such cell: its density is unbounded, and on the mean-reduced scale
    `exp(old_log_prob)` is no probability at all. The likelihood ratio itself offers a partition, {x: pi(x) >=
    mu(x)} against the rest. It is the two-cell partition that shows the whole difference of the policies: the
    probability of the cell in which the sample lies changes by exactly `pi - mu = sign(r - 1) TV`, and for
    Gaussians of equal variance `TV = erf(|mean - old_mean| / (2 sqrt(2) std))` (`gaussian_tv`). Put into the
    weight of `drpo_loss`:

        gradient = -A r w,   w = 1 - sign(A (r - 1)) TV / epsilon,   1 - 1/epsilon <= w <= 1 + 1/epsilon,

    which is the gradient of the loss above. At ratio one it is the plain policy gradient. Like Flow-DPPO's,
    the trust region is told by the exact divergence and the ratio gives only the direction, which is that of
    the divergence in most entries and not in all (`flow_dppo_loss` says in which); unlike there, w falls
    gradually, and beyond TV = epsilon turns the entry back. For a fixed latent w changes side where r = 1.

    Scale of epsilon. The ratio r is a D-th root, within about 1e-4 of 1, so a radius in r would depend on D
    and on the noise of one sample. TV is told of the joint policy in all D elements: a probability, in [0,
    1], whatever D is. The border lies at `4 erfinv(epsilon)^2` nats of joint KL divergence: 0.03 at 0.1, 0.2
    at 0.25, 0.66 (where Flow-DPPO's usual threshold of 1e-5 lies for SD3 at 512 x 512) at 0.43, 0.9 at 0.5,
    2.6 at 0.75, none from 1 on.

    Args:
        log_prob: `[B]` or `[B, S]` mean-reduced, under the policy being trained, with gradient.
        old_log_prob: As `log_prob`, under the policy that sampled.
        mean: `[*log_prob.shape, ...]` of the policy being trained. Only compared: no gradient flows through
            it.
        old_mean: As `mean`, of the policy that sampled.
        std: As `log_prob`: what `sde_step` returned; positive wherever `mask` is True.
        advantages: As `log_prob`, or `[B]`.
        epsilon: Radius of the trust region in total variation; positive, below 1 to have a border.
        mask: Bool as `log_prob`; entries that are trained. None trains all.
        denominator: Unmasked entries of the whole optimizer step; None counts these.
        max_log_ratio: Where log-ratios are cut, in nats per element; beyond it an entry has no gradient. It
            guards against overflow and is no trust region.

    Returns:
        The loss, and `ratio_mean`, `ratio_max_deviation`, `approx_kl`, `kl` and `kl_max` (exact,
        mean-reduced), `tv`, `corrective_fraction` (the share of entries that are turned back).

    Raises:
        ShapeError: Shapes or dtypes do not fit.
        ContractError: `std` is 0 in an unmasked entry.
        ConfigError: `epsilon` or `max_log_ratio` is out of range.

    Reference:
        DRPO (arXiv 2606.09821), whose token form this carries over; Flow-DPPO (2606.11025) for the
        divergence.
    """
    _require_epsilon(epsilon)
    e = entries(log_prob, old_log_prob, advantages, mask, denominator, max_log_ratio)
    require_floating("std", std)
    require_shape("std", std, log_prob.shape, "log_prob")
    std = require_positive_std(std, e.mask)
    kl = torch.where(e.mask, gaussian_kl(mean.detach(), old_mean.detach(), std), 0.0)
    nats = kl * mean[(0,) * log_prob.ndim].numel()
    tv = torch.erf(nats.sqrt() / 2.0)
    terms = -e.advantages * e.log_ratio.exp()
    terms = terms + e.advantages.abs() * (tv / epsilon) * torch.expm1(e.log_ratio).abs()
    metrics = ratio_metrics(e) | _shift_metrics(e, tv, epsilon)
    metrics["kl"] = Metric(masked_mean(kl, e.mask, e.denominator))
    metrics["kl_max"] = Metric(kl.max(), "max")
    return masked_mean(terms, e.mask, e.denominator), metrics


def _shift_metrics(e: Entries, shift: Tensor, epsilon: float) -> dict[str, Metric]:
    corrected = (outwards(e) & (shift > epsilon)).float()
    return {
        "tv": Metric(masked_mean(shift, e.mask, e.denominator)),
        "corrective_fraction": Metric(masked_mean(corrected, e.mask, e.denominator)),
    }


def _require_epsilon(epsilon: float) -> None:
    if not epsilon > 0:
        raise ConfigError(f"`epsilon` must be positive, got {epsilon}; try 0.5.")
