"""One denoising step of the policy, sampled or scored by the same code."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from unirl_env.errors import ConfigError, ShapeError
from unirl_env.functional.checks import require_choice, require_floating, require_shape
from unirl_env.functional.kernels import transition

__all__ = ["SDEStep", "sde_step"]

HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


class SDEStep(NamedTuple):
    """What one step gives, whether it was sampled or scored.

    Attributes:
        latent: `[*lead, ...]` the next latent, in the storage dtype.
        log_prob: `[*lead]` float32 log-density of `latent`, mean over elements unless told otherwise; 0 where
            the step is deterministic.
        mean: `[*lead, ...]` float32.
        std: `[*lead]` float32; 0 where the step is deterministic.
    """

    latent: Tensor
    log_prob: Tensor
    mean: Tensor
    std: Tensor


def sde_step(
    velocity: Tensor,
    latent: Tensor,
    sigma: float | Tensor,
    sigma_next: float | Tensor,
    *,
    dynamics: str = "flow",
    eta: float = 0.7,
    sigma_max: float | None = None,
    next_latent: Tensor | None = None,
    noise: Tensor | None = None,
    storage_dtype: torch.dtype | None = None,
    stochastic: Tensor | None = None,
    reduction: str = "mean",
) -> SDEStep:
    """Sample the next latent (`noise` given) or score one (`next_latent` given), by one and the same code.

    The log-probability is the Gaussian log-density `-(x' - mean)^2 / (2 std^2) - ln std - ln(2 pi) / 2` for
    every kernel. (Other implementations drop the variance and the constant for "cps"; the ratio of two
    policies is then taken to the power `2 std^2`, so a clip range would mean something else at every step.)
    It treats the next latent as data: no gradient flows through it.

    A stochastic step is a policy of its own and does not draw what the ODE would: `transition` says how far
    the distributions of "flow" and "cps" lie from the ODE's.

    It is a mean over the D elements by default: ratios are then the D-th roots of likelihood ratios, which
    float32 can hold at any size. A threshold on that scale means D times as many nats (`nats_to_mean`).

    Args:
        velocity: `[*lead, ...]` as in `transition`.
        latent: `[*lead, ...]`: images [B, S, C, H, W], packed latents [B, S, L, D], video [B, S, C, F, H, W],
            or any of them without S.
        sigma: A number, [B] or [B, S].
        sigma_next: As `sigma`.
        dynamics: As in `transition`.
        eta: As in `transition`.
        sigma_max: As in `transition`.
        next_latent: `[*lead, ...]` to be scored.
        noise: `[*lead, ...]` standard normal, to sample with; may be None if every row is deterministic.
        storage_dtype: What latents are stored in; the next latent is rounded to it before it is scored, so
            that scoring what was stored gives the ratio 1. None is the dtype of `latent`.
        stochastic: As in `transition`.
        reduction: "mean" over elements, or "sum" for the joint log-density in nats.

    Returns:
        The step; its latent has `storage_dtype`.

    Raises:
        ShapeError: Shapes or dtypes do not belong together, or there is nothing to sample with.
        ConfigError: A setting out of range, or both `next_latent` and `noise`.

    Reference:
        The step of DDPO (arXiv 2305.13301) that samples or scores; Flow-GRPO (arXiv 2505.05470).
    """
    require_choice("reduction", reduction, ("mean", "sum"))
    if next_latent is not None and noise is not None:
        raise ConfigError(
            "`next_latent` and `noise` must not both be given; try `noise` to sample, `next_latent` to score."
        )
    for name, tensor in (("next_latent", next_latent), ("noise", noise)):
        if tensor is not None:
            require_floating(name, tensor)
            require_shape(name, tensor, latent.shape, "latent")
    mean, std = transition(
        velocity,
        latent,
        sigma,
        sigma_next,
        dynamics=dynamics,
        eta=eta,
        sigma_max=sigma_max,
        stochastic=stochastic,
    )
    wide = std.shape + (1,) * (mean.ndim - std.ndim)
    if next_latent is None:
        if noise is not None:
            next_latent = mean + std.reshape(wide) * noise.float()
        elif bool((std > 0).any()):
            raise ShapeError(
                "`noise` must be given to sample a stochastic step, got None; try "
                "keyed_noise(episode_seeds, step, latent.shape[1:]), or eta=0 for the ODE."
            )
        else:
            next_latent = mean
        storage_dtype = storage_dtype or latent.dtype
    next_latent = next_latent.to(storage_dtype or next_latent.dtype)

    noisy = std > 0
    safe = torch.where(noisy, std, 1.0)
    square = ((next_latent.detach().float() - mean) / safe.reshape(wide)).square().flatten(std.ndim)
    log_prob = -0.5 * square.mean(-1) - safe.log() - HALF_LOG_TWO_PI
    if reduction == "sum":
        log_prob = log_prob * square.shape[-1]
    return SDEStep(next_latent, torch.where(noisy, log_prob, 0.0), mean, std)
