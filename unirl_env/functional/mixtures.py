"""Gaussian mixtures as flow models: everything about them is known in closed form.

With `x_sigma = (1 - sigma) x_0 + sigma * noise` and x_0 from a mixture, x_sigma is from a mixture as well, so
its density and the velocity of its flow need no training. Tilting the data by the exponential of a linear
reward gives a mixture again: the optimum of a KL-regularised objective.

Shapes: N points, K components, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from unirl_env.errors import ConfigError, ShapeError
from unirl_env.functional.require import require_floating

__all__ = [
    "GaussianMixture",
    "Tilt",
    "mixture_log_prob",
    "mixture_mean",
    "mixture_sample",
    "mixture_velocity",
    "tilted_mixture",
]

HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


@dataclass(frozen=True)
class GaussianMixture:
    """K Gaussians in D dimensions, each with its own std in every dimension.

    Attributes:
        log_weights: `[K]`, up to a constant.
        means: `[K, D]`.
        stds: `[K, D]`, positive.
    """

    log_weights: Tensor
    means: Tensor
    stds: Tensor

    def __post_init__(self) -> None:
        require_floating("means", self.means)
        if self.means.ndim != 2 or self.stds.shape != self.means.shape:
            raise ShapeError(
                f"`means` and `stds` must be [K, D], got {list(self.means.shape)} and "
                f"{list(self.stds.shape)}; try means=[[-1.0], [1.0]] for two components on a line."
            )
        if self.log_weights.shape != self.means.shape[:1]:
            raise ShapeError(
                f"`weights` must hold one number for each of the {self.means.shape[0]} components, "
                f"got shape {list(self.log_weights.shape)}."
            )

    @classmethod
    def of(
        cls,
        means: Sequence[Sequence[float]],
        stds: float | Sequence[float] | Sequence[Sequence[float]],
        weights: Sequence[float] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> GaussianMixture:
        """A mixture from plain numbers.

        Args:
            means: `[K][D]`.
            stds: One number, one per component `[K]`, or `[K][D]`; positive.
            weights: `[K]`, positive, up to a factor; None weighs all alike.
            dtype: Floating.

        Raises:
            ShapeError: Counts do not fit.
            ConfigError: A std or a weight is not positive.
        """
        centres, widths = torch.tensor(means, dtype=dtype), torch.tensor(stds, dtype=dtype)
        share = torch.tensor([1.0] * len(centres) if weights is None else weights, dtype=dtype)
        for name, numbers in (("stds", widths), ("weights", share)):
            if not bool(((numbers > 0) & torch.isfinite(numbers)).all()):
                raise ConfigError(f"`{name}` must be positive numbers, got {numbers.tolist()}; try 0.5.")
        try:
            widths = (widths[:, None] if widths.ndim == 1 else widths).broadcast_to(centres.shape)
        except RuntimeError as error:
            raise ShapeError(
                f"`stds` must be one number, or [K] or [K, D] like the means {list(centres.shape)}, "
                f"got shape {list(widths.shape)}."
            ) from error
        return cls((share / share.sum()).log(), centres, widths)

    def to(self, dtype: torch.dtype) -> GaussianMixture:
        """The same mixture in `dtype`."""
        return GaussianMixture(self.log_weights.to(dtype), self.means.to(dtype), self.stds.to(dtype))


class Tilt(NamedTuple):
    """The maximum of `E[r(x)] - beta KL(p || mixture)` over all distributions p.

    Attributes:
        mixture: The maximiser, proportional to `mixture(x) exp(r(x) / beta)`.
        objective: Scalar, the maximum: `beta` times the log of the normaliser.
        reward: Scalar, its expected reward.
        kl: Scalar, its divergence from the untilted mixture in nats.
    """

    mixture: GaussianMixture
    objective: Tensor
    reward: Tensor
    kl: Tensor


def mixture_log_prob(x: Tensor, mixture: GaussianMixture, sigma: float | Tensor = 0.0) -> Tensor:
    """Log-density of x_sigma at `x` `[N, D]`, in nats; `sigma` is a number or `[N]`, 0 is the data.

    Returns:
        `[N]`.
    """
    return torch.logsumexp(_component_log_prob(x, mixture, _column(x, sigma)), dim=1)


def mixture_velocity(x: Tensor, sigma: float | Tensor, mixture: GaussianMixture) -> Tensor:
    """The exact velocity `E[noise - x_0 | x_sigma = x]`, where x_0 is from the mixture.

    Given component i, x_sigma and x_0 are jointly Gaussian, so both expectations are linear in x; the
    components are weighed by how likely each of them made x.

    Args:
        x: `[N, D]`.
        sigma: A number or `[N]` in [0, 1].
        mixture: The distribution of the data.

    Returns:
        `[N, D]`; its gradient reaches the mixture's tensors.

    Raises:
        ShapeError: The shapes do not belong together.

    Reference:
        Flow matching (arXiv 2210.02747), the marginal velocity.
    """
    level = _column(x, sigma)
    share = torch.softmax(_component_log_prob(x, mixture, level), dim=1)[..., None]
    kept = (1.0 - level)[..., None]
    variance = (kept * mixture.stds).square() + level[..., None].square()
    gain = (level[..., None] - kept * mixture.stds.square()) / variance
    return (share * (gain * (x[:, None] - kept * mixture.means) - mixture.means)).sum(1)


def mixture_mean(mixture: GaussianMixture) -> Tensor:
    """The mean `[D]`."""
    return torch.softmax(mixture.log_weights, 0) @ mixture.means


def mixture_sample(mixture: GaussianMixture, uniform: Tensor, noise: Tensor) -> Tensor:
    """Points `[N, D]` of the mixture.

    Args:
        mixture: What to sample.
        uniform: `[N]` uniform in [0, 1), chooses the components.
        noise: `[N, D]` standard normal.
    """
    edges = torch.softmax(mixture.log_weights, 0).cumsum(0)[:-1]
    chosen = torch.searchsorted(edges, uniform, right=True)
    return mixture.means[chosen] + mixture.stds[chosen] * noise


def tilted_mixture(mixture: GaussianMixture, weights: Tensor, beta: float) -> Tilt:
    """The exact optimum for the linear reward `r(x) = <weights, x>`.

    Each component keeps its std; its mean moves by `std^2 weights / beta`, and its weight is multiplied by
    `exp(<weights, mean> / beta + |std weights|^2 / (2 beta^2))`.

    Args:
        mixture: The untilted distribution.
        weights: `[D]`.
        beta: Price of a nat, positive.

    Raises:
        ShapeError: `weights` is not `[D]`.
        ConfigError: `beta` is not positive.
    """
    if weights.shape != mixture.means.shape[1:]:
        raise ShapeError(
            f"`weights` must be one number for each of {mixture.means.shape[1]} dimensions, "
            f"got shape {list(weights.shape)}."
        )
    if not beta > 0:
        raise ConfigError(f"`beta` must be positive, got {beta}: without a price the optimum is infinite.")
    spread = mixture.stds * weights
    gain = mixture.means @ weights / beta + spread.square().sum(1) / (2.0 * beta**2)
    log_weights = torch.log_softmax(mixture.log_weights, 0) + gain
    log_normaliser = torch.logsumexp(log_weights, 0)
    means = mixture.means + mixture.stds * spread / beta
    tilted = GaussianMixture(log_weights - log_normaliser, means, mixture.stds)
    reward = mixture_mean(tilted) @ weights
    return Tilt(tilted, beta * log_normaliser, reward, reward / beta - log_normaliser)


def _column(x: Tensor, sigma: float | Tensor) -> Tensor:
    """`sigma` as `[N, 1]`."""
    if x.ndim != 2:
        raise ShapeError(f"`x` must be [N, D], got {list(x.shape)}; try x.reshape(len(x), -1).")
    sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    if sigma.ndim and sigma.shape != x.shape[:1]:
        raise ShapeError(f"`sigma` must be a number or [{x.shape[0]}], got shape {list(sigma.shape)}.")
    return sigma.expand(x.shape[0])[:, None]


def _component_log_prob(x: Tensor, mixture: GaussianMixture, level: Tensor) -> Tensor:
    """`[N, K]`: log of weight times density of each component at noise level `level` `[N, 1]`."""
    if x.shape[1] != mixture.means.shape[1]:
        raise ShapeError(f"`x` must be [N, {mixture.means.shape[1]}], got {list(x.shape)}.")
    level = level[..., None]
    std = (((1.0 - level) * mixture.stds).square() + level.square()).sqrt()
    z = (x[:, None] - (1.0 - level) * mixture.means) / std
    log_prob = (-0.5 * z.square() - std.log() - HALF_LOG_TWO_PI).sum(2)
    return log_prob + torch.log_softmax(mixture.log_weights, 0)
