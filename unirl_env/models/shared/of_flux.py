"""What the pipelines of FLUX.1 and FLUX.2 have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from unirl_env.models.shared.of_diffusers import OfDiffusers, Sizes, autoencoder_scale
from unirl_env.models.shared.told_guidance import told_guidance

PATCH, TRAINED = 2, 128
"""Places of a side in a token; places of a side where no size is asked for, in every pipeline of FLUX."""


class OfFlux(OfDiffusers):
    """Latents are tokens `[H/16 x W/16, C]`, and guidance may be an input of the network.

    All `max_sequence_length` tokens of a text are read by the network, those that fill it up as well, so that
    another length is another picture.

    Args:
        pretrained: A hub id or a directory.
        embedded_guidance: What the pipeline calls `guidance_scale` where it is an input of the network, the
            same in training and evaluation; None takes the pipeline's default. `guidance` is another thing.
        **options: Those of `OfDiffusers`.

    Attributes:
        tells: The pipeline's default of it; None where the pipeline tells its network nothing.
        embedded_guidance: What the network is told; None where it has no such input.

    Raises:
        ConfigError: If `embedded_guidance` is no number, or the network has no such input.
    """

    tells: ClassVar[float | None] = None

    def __init__(self, pretrained: str, *, embedded_guidance: float | None = None, **options: Any):
        super().__init__(pretrained, **options)
        self.embedded_guidance = told_guidance(
            self._network_class, self.configs[self.trained], self.tells, embedded_guidance, self.pretrained
        )

    @property
    def _unit(self) -> int:
        """Pixels of a side of one token."""
        return PATCH * autoencoder_scale(self.configs["vae"])

    def _sizes(self, config: Mapping[str, Any]) -> Sizes:
        return Sizes(self._unit // PATCH, PATCH, TRAINED * self._unit // PATCH)

    def _shape(self, rows: int, columns: int) -> tuple[int, ...]:
        return rows * columns // PATCH**2, self.configs[self.trained]["in_channels"]

    def _when(self, sigma: Tensor, latent: Tensor) -> dict[str, Tensor | None]:
        """Time and guidance as the network is told them, each `[N]`."""
        scale = self.embedded_guidance
        return {
            # The pipeline rounds the scheduler's time to the precision of the latents, and divides then.
            "timestep": (sigma * self._flow.num_train_timesteps).to(latent.dtype) / 1000,
            "guidance": None if scale is None else torch.full_like(sigma, scale, dtype=torch.float32),
        }
