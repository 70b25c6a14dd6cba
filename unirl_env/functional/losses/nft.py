"""DiffusionNFT: regression to good samples and away from bad ones, without a likelihood."""

from __future__ import annotations

import torch
from torch import Tensor

from unirl_env.errors import ConfigError
from unirl_env.functional.forward import surrogate
from unirl_env.functional.losses.ratio import Metric, mask_and_denominator, masked_mean
from unirl_env.functional.require import require_floating, require_lead, require_shape


def nft_loss(
    velocity: Tensor,
    old_velocity: Tensor,
    target: Tensor,
    sigma: Tensor,
    advantages: Tensor,
    *,
    beta: float = 1.0,
    advantage_clip: float = 5.0,
    weight: str = "adaptive",
    reduction: str = "mean",
    weight_rows: Tensor | None = None,
    mask: Tensor | None = None,
    denominator: float | Tensor | None = None,
) -> tuple[Tensor, dict[str, Metric]]:
    """`C / beta (r U(v+) + (1 - r) U(v-))`, with `r = 1/2 + clip(A, -C, C) / 2C` the share of a good sample.

    v+ and v- are the policy's velocity and its reflection at the old one, `v_old +- beta (v - v_old)`; U is
    `surrogate` to the row's target. A good sample (r near 1) pulls v+ to itself, a bad one v-, so v away.
    With "adaptive" each branch has a denominator of its own.

    At v = v_old the gradient is `clip(A, -C, C)` times that of U, for every beta: the factor C is in the
    authors' code and not in their formula, where A is clipped to 1 instead. Away from there a row of A = 0
    has a gradient, too, back to v_old: no row may be left out. With a weight of sigma alone and no clipping
    the best policy is `v_old + E[(2 r - 1) (u - v_old) | x] / beta`: beta is the strength of the pull back.
    Data from N(m, k^2) with `r = 1/2 + kappa (x_0 - m)` move their mean by exactly `2 kappa k^2 / beta`,
    which at beta 1 is the mean of the density times r.

    Args:
        velocity: `[N, ...]` of the policy being trained at noised latents, with gradient.
        old_velocity: As `velocity`, of the policy that is improved upon, at the same latents.
        target: As `velocity`: the second result of `noised`.
        sigma: `[N]`, or the first dimensions of `velocity`.
        advantages: As `sigma`.
        beta: How far v+ lies from v_old; positive.
        advantage_clip: C, the advantage of a wholly good sample; positive.
        weight: As in `surrogate`.
        reduction: As in `surrogate`.
        weight_rows: As `sigma`, what a row counts; None counts all alike. (The advantage is no such factor
            here.)
        mask: Bool as `sigma`; rows that are trained. None trains all.
        denominator: Unmasked rows of the whole optimizer step; None counts these.

    Returns:
        The loss, and `positive` and `negative` (the mean of U of each branch), `drift` and `drift_max` (mean
        square per element of `v - v_old`), `advantage_clip_fraction`.

    Raises:
        ShapeError: Shapes or dtypes do not fit.
        ConfigError: `beta` or `advantage_clip` is not positive, or `weight` or `reduction` is unknown.

    Reference:
        DiffusionNFT (arXiv 2509.16117), the loss of both branches; the factor C as in its published code.
    """
    for name, number, usual in (("beta", beta, 1.0), ("advantage_clip", advantage_clip, 5.0)):
        if not number > 0:
            raise ConfigError(f"`{name}` must be positive, got {number}; try {usual}.")
    require_floating("velocity", velocity)
    for name, tensor in (("old_velocity", old_velocity), ("target", target)):
        require_floating(name, tensor)
        require_shape(name, tensor, velocity.shape, "velocity")
    require_floating("sigma", sigma)
    require_lead("sigma", sigma, velocity, "velocity")
    rows = {"advantages": advantages}
    if weight_rows is not None:
        rows["weight_rows"] = weight_rows
    for name, tensor in rows.items():
        require_floating(name, tensor)
        require_shape(name, tensor, sigma.shape, "sigma")
    mask, denominator = mask_and_denominator(mask, denominator, sigma, "sigma")

    wide = mask.reshape(mask.shape + (1,) * (velocity.ndim - mask.ndim))
    old, target = (torch.where(wide, each.detach().float(), 0.0) for each in (old_velocity, target))
    moved = torch.where(wide, velocity.float(), 0.0) - old
    level = torch.where(mask, sigma.detach().float(), 1.0)
    a = torch.where(mask, advantages.detach().float(), 0.0)
    good = 0.5 + a.clamp(-advantage_clip, advantage_clip) / (2 * advantage_clip)
    # Steps from the old velocity and not weighted means of the two: at v = v_old both branches are equal.
    positive = surrogate(old + beta * moved, target, level, weight=weight, reduction=reduction)
    negative = surrogate(old - beta * moved, target, level, weight=weight, reduction=reduction)
    terms = advantage_clip / beta * (good * positive + (1 - good) * negative)
    if weight_rows is not None:
        terms = terms * torch.where(mask, weight_rows.detach().float(), 0.0)

    drift = moved.detach().square().flatten(mask.ndim).mean(-1)
    means = {
        "positive": positive.detach(),
        "negative": negative.detach(),
        "drift": drift,
        "advantage_clip_fraction": (a.abs() > advantage_clip).float(),
    }
    metrics = {name: Metric(masked_mean(value, mask, denominator)) for name, value in means.items()}
    metrics["drift_max"] = Metric(drift.max(), "max")
    return masked_mean(terms, mask, denominator), metrics
