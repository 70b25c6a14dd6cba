"""A flow model without training: its data are a Gaussian mixture, so its velocity is known exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import unirl_env.functional as F
from unirl_env.arguments.values import number
from unirl_env.functional.mixtures import GaussianMixture, mixture_velocity
from unirl_env.models.denoiser import Denoiser
from unirl_env.types import Prompt, Sample

__all__ = ["GaussianMixtureDenoiser", "MixtureNetwork"]

MEANS = ((-1.0, -0.6), (1.0, -0.6), (0.0, 1.0))
STDS = (0.5, 0.4, 0.3)
WEIGHTS = (0.5, 0.2, 0.3)
VIEW, PIXELS, DOT = 3.0, 64, 0.15


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

    def decode(self, latents: Tensor) -> list[Sample]:
        """The points themselves, float32 `[D]`."""
        # Clones, because a view would carry the whole batch along wherever it is sent.
        return [Sample(latent=latent.clone()) for latent in latents.detach().float().cpu()]

    def pictures(self, latents: Tensor) -> list[Tensor]:
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
