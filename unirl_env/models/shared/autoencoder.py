"""Diffusers' autoencoder of pictures: the frozen way between pixels and latents."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from unirl_env.errors import ConfigError
from unirl_env.models.shared.fixed_batches import in_fixed_batches, painted, pictures_at_once
from unirl_env.models.shared.loading import EMBEDDED, Source, complete
from unirl_env.types import Sample


class Autoencoder:
    """Pictures to latents of mean 0 and deviation 1, and back; the weights load on first use.

    Args:
        pretrained: A hub id or a directory that holds an `AutoencoderKL` in `subfolder`.
        subfolder: Where in it.
        revision: Branch, tag or commit of the hub repository.
        dtype: Of weights and activations.
        device: Where it lives.
        alternative: The environment id that an error points to.

    Raises:
        ModelNotFound: If it cannot be loaded.
        ConfigError: If it scales each channel of its latents by itself.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        subfolder: str = "vae",
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        alternative: str = EMBEDDED["image"],
    ):
        self.pretrained, self.subfolder, self.revision = str(pretrained), subfolder, revision
        self.dtype, self.device = dtype, torch.device(device)
        from diffusers import AutoencoderKL

        kind, options = (
            "a model with an autoencoder of diffusers",
            {"subfolder": subfolder, "revision": revision},
        )
        self._source = Source(self.pretrained, kind, alternative, options)
        config = self._source.load(AutoencoderKL.load_config)
        for name in ("latents_mean", "latents_std"):
            if config.get(name) is not None:
                raise ConfigError(
                    f"`{name}` of an autoencoder must be null: latents are scaled by one number, "
                    f"`scaling_factor`, got {config[name]!r:.80}; try another autoencoder."
                )
        self.scale = 2 ** (len(config["block_out_channels"]) - 1)
        self.channels: int = config["latent_channels"]
        self._factor, self._shift = config["scaling_factor"], config.get("shift_factor") or 0.0

    @torch.no_grad()
    def latents(self, pictures: Tensor) -> Tensor:
        """The likeliest latents `[B, C, h, w]` float32 of pictures `[B, 3, H, W]` in [0, 1]."""

        def read(pictures: Tensor) -> Tensor:
            pictures = pictures.to(self.device, self.dtype) * 2 - 1
            return self._weights.encode(pictures).latent_dist.mode().float().cpu()

        latents = in_fixed_batches(read, pictures, rows=pictures_at_once(*pictures.shape[-2:]))
        return (latents - self._shift) * self._factor

    @torch.no_grad()
    def samples(self, latents: Tensor) -> list[Sample]:
        """Latents `[B, C, h, w]` as samples with an `image` `[3, H, W]` float32 in [0, 1]."""

        def draw(latents: Tensor) -> Tensor:
            latents = latents.to(self.device, self.dtype) / self._factor + self._shift
            return self._weights.decode(latents, return_dict=False)[0]

        return painted(draw, latents, *(side * self.scale for side in latents.shape[-2:]))

    def save(self, directory: str) -> None:
        """Write it where `pretrained=directory` finds it."""
        self._weights.save_pretrained(f"{directory}/{self.subfolder}")

    @cached_property
    def _weights(self) -> Any:
        from diffusers import AutoencoderKL

        return (
            self._source.load(complete(AutoencoderKL.from_pretrained), torch_dtype=self.dtype)
            .to(self.device)
            .eval()
        )
