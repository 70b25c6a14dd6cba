"""FLUX.1 dev and schnell: T5 and the pooled answer of CLIP are the encoding of a text."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from unirl_env.errors import ConfigError
from unirl_env.models.shared.of_diffusers import TWO_STREAMS
from unirl_env.models.shared.of_flux import OfFlux

LONGEST = 512
"""Tokens of T5 that the pipeline allows."""


class Flux1Denoiser(OfFlux):
    """FLUX.1; arguments are those of `OfFlux`.

    `guidance` is the pipeline's `true_cfg_scale`, and `embedded_guidance` its `guidance_scale`.

    Raises:
        ConfigError: If `max_sequence_length` is more than the pipeline allows, too.
    """

    family, pipeline, tells = "FLUX.1", "FluxPipeline", 3.5
    classes = {"transformer": "FluxTransformer2DModel", "vae": "AutoencoderKL"}
    dropped = ("image_encoder", "feature_extractor")
    lora_targets = TWO_STREAMS

    def __init__(self, pretrained: str, **options: Any):
        super().__init__(pretrained, **options)
        if self.max_sequence_length > LONGEST:
            raise ConfigError(
                f"`max_sequence_length` must be at most {LONGEST}, got {self.max_sequence_length}; try "
                f"{LONGEST}, or 256 for schnell."
            )

    def _encode(self, texts: list[str]) -> dict[str, Tensor]:
        embeds, pooled, _ = self.frozen.encode_prompt(
            prompt=texts, device=self.device, max_sequence_length=self.max_sequence_length
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    @cached_property
    def _places(self) -> Tensor:
        """Where each token of the picture stands, `[tokens, 3]`."""
        rows, columns = self.height // self._unit, self.width // self._unit
        return self._pipeline_class._prepare_latent_image_ids(1, rows, columns, "cpu", torch.float32)

    def _forward(
        self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Mapping[str, Tensor]
    ) -> Tensor:
        text = context["prompt_embeds"]
        return network(
            hidden_states=latent,
            encoder_hidden_states=text.to(self.dtype),
            pooled_projections=context["pooled_prompt_embeds"].to(self.dtype),
            txt_ids=latent.new_zeros(text.shape[1], 3),
            img_ids=self._places.to(latent),
            return_dict=False,
            **self._when(sigma, latent),
        )[0]

    def _draw(self, vae: Any, latents: Tensor) -> Tensor:
        scale = self._unit // 2
        grid = self._pipeline_class._unpack_latents(latents, self.height, self.width, scale)
        return super()._draw(vae, grid)
