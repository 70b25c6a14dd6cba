"""A flow model without training: its data are a Gaussian mixture, and everything about it is known exactly.

With `x_sigma = (1 - sigma) x_0 + sigma * noise` and x_0 from a mixture, x_sigma is from a mixture as well, so
its density and the velocity of its flow need no training. Tilting the data by the exponential of a linear
reward gives a mixture again: the optimum of a KL-regularised objective.

Shapes: N points, K components, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import unirl_env.functional as F
from unirl_env.arguments.values import number
from unirl_env.errors import ConfigError, ShapeError
from unirl_env.functional.require import require_floating
from unirl_env.models.denoiser import Denoiser
from unirl_env.types import Prompt, Sample

MEANS = ((-1.0, -0.6), (1.0, -0.6), (0.0, 1.0))
STDS = (0.5, 0.4, 0.3)
WEIGHTS = (0.5, 0.2, 0.3)
VIEW, PIXELS, DOT = 3.0, 64, 0.15
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


class MixtureNetwork(nn.Module):
    """The exact velocity of a mixture whose parameters are trained.

    The class of policies that it spans holds the optimum of a KL-regularised linear reward: the velocity of
    the tilted mixture, which `tilted_mixture` gives, in the limit of many steps with `eta = sqrt(2)`.

    Args:
        mixture: Where training starts.
    """

    def __init__(self, mixture: GaussianMixture):
        super().__init__()
        self.log_weights = nn.Parameter(mixture.log_weights.clone())
        self.means = nn.Parameter(mixture.means.clone())
        self.log_stds = nn.Parameter(mixture.stds.log())

    @property
    def mixture(self) -> GaussianMixture:
        """The mixture that this network's flow leads to, in float32, with gradient."""
        return GaussianMixture(self.log_weights.float(), self.means.float(), self.log_stds.float().exp())

    def forward(self, latent: Tensor, sigma: Tensor) -> Tensor:
        """The velocity `[N, D]` at latents `[N, D]` and noise levels `[N]`."""
        return mixture_velocity(latent.float(), sigma.float(), self.mixture)


class GaussianMixtureDenoiser(Denoiser):
    """Points in D dimensions; every prompt asks for the same mixture, and a point is its own decoding.

    There are no adapters: all weights are trained (`lora_rank: null`).

    Args:
        means: `[K][D]`, the centres of the components.
        stds: One number, one per component `[K]`, or `[K][D]`.
        weights: `[K]`, up to a factor; None weighs all alike.
        shift: Of the schedule, as in `flow_sigmas`. Below 1 the last step, which is deterministic and
            therefore escapes the KL to the reference, is a small one.
        dtype: Of the trained numbers; the maths is float32.
        device: Where the network and the finished points live.
        offload: There is nothing to offload; taken because every model takes it.

    Raises:
        ShapeError: The components' numbers do not fit together.
        ConfigError: A std or a weight is not positive.
    """

    lora_targets = ()

    def __init__(
        self,
        means: Sequence[Sequence[float]] = MEANS,
        stds: float | Sequence[float] | Sequence[Sequence[float]] = STDS,
        weights: Sequence[float] | None = WEIGHTS,
        *,
        shift: float = 0.5,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        offload: bool = False,
    ):
        self.mixture = GaussianMixture.of(means, stds, weights)
        self.shift = number("shift", shift)
        self.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self.device = torch.device(device)
        self.latent_shape = (self.mixture.means.shape[1],)

    def identity(self) -> dict[str, Any]:
        """The components, too."""
        numbers = {name: getattr(self.mixture, name).tolist() for name in ("means", "stds", "log_weights")}
        return {**super().identity(), **numbers}

    def sigmas(self, num_steps: int) -> Tensor:
        """The noise schedule `[T+1]`."""
        return F.flow_sigmas(num_steps, shift=self.shift)

    def encode(self, prompts: Sequence[Prompt], *, negative: bool = False) -> dict[str, Tensor]:
        """Nothing: the mixture does not depend on the prompt."""
        return {}

    def decode(self, latents: Tensor, context: Mapping[str, Tensor] | None = None) -> list[Sample]:
        """The points themselves, float32 `[D]`."""
        # Clones, because a view would carry the whole batch along wherever it is sent.
        return [Sample(latent=latent.clone()) for latent in latents.detach().float().cpu()]

    def pictures(self, latents: Tensor, context: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """A dot `[3, 64, 64]` where each point lies within +-3 in its first two dimensions."""
        place = torch.nn.functional.pad(latents.detach().float().cpu(), (0, 1))[:, :2]
        axis = torch.linspace(-VIEW, VIEW, PIXELS)
        x, y = torch.exp(-((axis - place[..., None]) / DOT).square()).unbind(1)
        return list((1.0 - y.flip(1)[:, :, None] * x[:, None, :])[:, None].expand(-1, 3, -1, -1))

    def network(self) -> nn.Module:
        """A `MixtureNetwork` at the exact velocity."""
        return MixtureNetwork(self.mixture).to(self.device, self.dtype).eval()

    def velocity(
        self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Mapping[str, Tensor]
    ) -> Tensor:
        """The velocity `[N, D]` of the network's mixture, float32."""
        return network(latent, sigma)
