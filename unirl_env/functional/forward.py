"""The forward process of flow matching: finished latents noised anew, and how far a velocity misses there.

With `x_s = (1 - s) x_0 + s e` a perfect velocity is the mean of `u = e - x_0` given `x_s`. A sample x_0 is
told of by its miss at a few sigmas and noises, without the path that made it: minus the weighted miss stands
for its log-probability, up to a constant.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unirl_env.errors import ConfigError, ShapeError
from unirl_env.functional.require import require_choice, require_floating, require_lead, require_shape

WEIGHTS = ("unit", "x0", "adaptive", "elbo", "ghuber")
DISTRIBUTIONS = ("uniform", "logit_normal")
ADAPTIVE_FLOOR = 1e-5  # the least that a mean absolute miss of x_0 is taken for
ELBO_FLOOR = 1e-3  # the least sigma that the weight (1 - s) / s is taken at
HUBER_POWER = 0.25
HUBER_FLOOR = 1e-10
ROUNDING = 1e-6  # a sigma may miss 0 or 1 by rounding
NEAREST = 2.0**-24  # to 0 and to 1 that a drawn sigma lies


def noised(final: Tensor, noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Finished latents noised anew, and what a velocity should be there.

    Args:
        final: `[N, ...]` finished latents x_0.
        noise: As `final`, standard normal.
        sigma: `[N]` in [0, 1]; or the first dimensions of `final`, such as [B, K].

    Returns:
        `(1 - s) x_0 + s e` and `e - x_0`, both as `final`, float32. At sigma 1 the first is the noise.

    Raises:
        ShapeError: Shapes or dtypes do not belong together, or a sigma on the CPU is outside [0, 1].

    Reference:
        Flow Matching (arXiv 2210.02747), section 4; Rectified Flow (2209.03003), equation 1.
    """
    require_floating("final", final)
    require_floating("noise", noise)
    require_shape("noise", noise, final.shape, "final")
    s = _levels(sigma, final, "final")
    s = s.reshape(s.shape + (1,) * (final.ndim - s.ndim))
    x0, e = final.float(), noise.float()
    return (1 - s) * x0 + s * e, e - x0


def stratified_sigmas(
    uniform: Tensor, *, distribution: str = "uniform", low: float = 0.0, high: float = 1.0
) -> Tensor:
    """K sigmas a row, one from each K-th part of the distribution: draw k is at `(k + uniform) / K` of it.

    Each draw by itself is of its own part; the mean over the K draws of a row is unbiased, and varies less
    than that of K independent ones.

    - "uniform": on [low, high].
    - "logit_normal": the sigmoid of a standard normal, given that it lies in [low, high].

    The ends: no sigma is below `2^-24` or above `1 - 2^-24`, the float32 next to 1. So the logarithm of
    either side and `1 / sigma` are finite, whatever `uniform` is.

    Args:
        uniform: `[N, K]` in [0, 1), `keyed_uniform` or alike.
        distribution: One of the above.
        low: Least sigma.
        high: Largest sigma; above `low`.

    Returns:
        `[N, K]` float32, rising along K.

    Raises:
        ShapeError: `uniform` is not `[N, K]` floating, or on the CPU and outside [0, 1).
        ConfigError: The distribution is unknown, or the range is not within [0, 1].

    Reference:
        Esser et al. (arXiv 2403.03206), section 3.1, for the logit-normal; stratified times as in Variational
        Diffusion Models (2107.00630), appendix I.1.
    """
    require_choice("distribution", distribution, DISTRIBUTIONS)
    if not 0 <= low < high <= 1:
        raise ConfigError(
            f"`low` and `high` must satisfy 0 <= low < high <= 1, got {low} and {high}; try 0.0 and 1.0."
        )
    require_floating("uniform", uniform)
    if uniform.ndim != 2 or uniform.numel() == 0:
        raise ShapeError(
            f"`uniform` must be [N, K], K draws a row, and not empty, got {list(uniform.shape)}; "
            "try uniform[:, None] for one draw."
        )
    if uniform.device.type == "cpu" and not bool(((uniform >= 0) & (uniform < 1)).all()):
        raise ShapeError("`uniform` must lie in [0, 1), got a number outside; try keyed_uniform.")
    draws = uniform.shape[1]
    # float64: parts of a distribution near its ends differ by less than float32 resolves.
    place = (torch.arange(draws, device=uniform.device) + uniform.detach().double()) / draws
    if distribution == "uniform":
        sigma = low + (high - low) * place
    else:
        ends = torch.special.ndtr(torch.tensor([low, high], dtype=torch.float64, device=place.device).logit())
        sigma = torch.special.ndtri(ends[0] + (ends[1] - ends[0]) * place).sigmoid()
    return sigma.clamp(max(low, NEAREST), min(high, 1 - NEAREST)).float()


def surrogate(
    velocity: Tensor, target: Tensor, sigma: Tensor, *, weight: str = "unit", reduction: str = "mean"
) -> Tensor:
    """How far a velocity misses its target, weighted by sigma: minus it stands for a log-probability.

    With `d = velocity - target`, `<.>` the mean over the D elements of a row, and sg without gradient; the
    miss of the predicted x_0 is `-s d`:

    | weight | value | what it is |
    |---|---|---|
    | "unit" | `<d^2>` | the training loss of the model, uniform in sigma |
    | "x0" | `s^2 <d^2>` | the squared miss of x_0 |
    | "adaptive" | `s^2 <d^2> / sg(max(s <abs(d)>, 1e-5))` | that over its own size |
    | "elbo" | `(1 - s) / s <d^2>` | with uniform sigmas and "sum", the evidence bound in nats |
    | "ghuber" | `4 s ((<d^2> + 1e-10)^(1/4) - 1e-10^(1/4))` | a root, of slope `s <d^2>^(-3/4)` in `<d^2>` |

    "elbo" takes its weight at 1e-3 where s is less, one draw of a thousand if they are uniform: it would grow
    without bound towards data, where the miss does not vanish. From there on it is exact.

    The mean of "elbo", "sum" over uniform sigmas and noise is, up to a constant of the data, a bound of
    `-ln p(x_0)`, and its expectation under two Gaussians differs by exactly their KL. Of all others, and of
    the mean over elements, exp(-U) is no ratio of likelihoods: at "mean" it is a D-th root of one at best.

    Args:
        velocity: `[N, ...]`, with gradient.
        target: As `velocity`: the second result of `noised`. No gradient flows to it.
        sigma: `[N]` in [0, 1]; or the first dimensions of `velocity`.
        weight: One of the above.
        reduction: "mean" as in the table; "sum" is D times as much.

    Returns:
        As `sigma`, float32, at least 0.

    Raises:
        ShapeError: Shapes or dtypes do not belong together, or a sigma on the CPU is outside [0, 1].
        ConfigError: `weight` or `reduction` is unknown.

    Reference:
        DiffusionNFT (arXiv 2509.16117), adaptive weights; AWM (2509.25050), ghuber; Kingma and Gao
        (2303.00848), table 1, the bound as a weighted loss.
    """
    require_choice("weight", weight, WEIGHTS)
    require_choice("reduction", reduction, ("mean", "sum"))
    s = _levels(sigma, velocity, "velocity")
    d = _difference(velocity, target, "target", s.ndim)
    square = d.square().mean(-1)
    if weight == "adaptive":
        value = s.square() * square / (s * d.detach().abs().mean(-1)).clamp_min(ADAPTIVE_FLOOR)
    elif weight == "ghuber":
        root = (square + HUBER_FLOOR) ** HUBER_POWER - HUBER_FLOOR**HUBER_POWER
        value = s / HUBER_POWER * root
    else:
        value = _of_sigma(s, weight) * square
    return value * d.shape[-1] if reduction == "sum" else value


def velocity_kl(
    velocity: Tensor, reference: Tensor, sigma: Tensor, *, weight: str = "unit", reduction: str = "mean"
) -> Tensor:
    """`w(s) <(v - v_ref)^2>`, the pull to a reference's velocity: w is 1, `s^2` or `(1 - s) / s`.

    With "elbo", "sum" and uniform sigmas its mean is the KL of the two models' paths in nats, which for two
    Gaussians of one spread is that of what they make. A step of the "flow" kernel from s by D has a latent KL
    of `(1 / eta + eta / 2)^2 / 2 * D (1 - s) / s |v - v_ref|^2`: the same weight, of factor 1 at eta sqrt(2)
    and 1.58 at 0.7. "unit" counts noisy steps more than that.

    "adaptive" and "ghuber" count as "unit". Both divide by the size of a miss, which no model gets to 0;
    between two policies it is 0 where training starts, and the pull would be as strong however near they are,
    and jump there.

    Args:
        velocity: `[N, ...]`, with gradient.
        reference: As `velocity`, under the reference's weights. No gradient flows to it.
        sigma: `[N]` in [0, 1]; or the first dimensions of `velocity`.
        weight: As in `surrogate`, so that both can be given one setting.
        reduction: "mean" over elements, or "sum".

    Returns:
        As `sigma`, float32, at least 0.

    Raises:
        ShapeError: Shapes or dtypes do not belong together, or a sigma on the CPU is outside [0, 1].
        ConfigError: `weight` or `reduction` is unknown.

    Reference:
        UniGRPO (arXiv 2603.23500), the mean squared difference of velocities; DiffusionNFT (2509.16117).
    """
    require_choice("weight", weight, WEIGHTS)
    require_choice("reduction", reduction, ("mean", "sum"))
    s = _levels(sigma, velocity, "velocity")
    d = _difference(velocity, reference, "reference", s.ndim)
    square = d.square().mean(-1) if reduction == "mean" else d.square().sum(-1)
    return _of_sigma(s, weight) * square


def _of_sigma(s: Tensor, weight: str) -> Tensor:
    if weight == "x0":
        return s.square()
    if weight == "elbo":
        return (1 - s) / s.clamp_min(ELBO_FLOOR)
    return torch.ones_like(s)


def _difference(velocity: Tensor, other: Tensor, name: str, rank: int) -> Tensor:
    """`[*lead, D]` float32 of two tensors `[*lead, ...]`."""
    require_floating(name, other)
    require_shape(name, other, velocity.shape, "velocity")
    return (velocity.float() - other.detach().float()).flatten(rank)


def _levels(sigma: Tensor, full: Tensor, like: str) -> Tensor:
    """The sigmas, checked, in float32 on the device of `full`."""
    require_floating(like, full)
    require_floating("sigma", sigma)
    require_lead("sigma", sigma, full, like)
    # Values are checked where that costs no wait for an accelerator.
    if sigma.device.type == "cpu" and not bool(((sigma >= -ROUNDING) & (sigma <= 1 + ROUNDING)).all()):
        raise ShapeError(
            f"`sigma` must lie in [0, 1], got {sigma.detach().min():g} to {sigma.detach().max():g}; "
            "try stratified_sigmas, or values of flow_sigmas(num_steps)."
        )
    return sigma.detach().to(full.device, torch.float32).clamp(0.0, 1.0)
