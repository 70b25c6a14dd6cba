"""Stable Diffusion 1, 2 and XL: UNets that predict noise or v."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from unirl_env.models.shared.of_unet import OfUNet
from unirl_env.models.shared.variance_preserving import VariancePreserving


class SD15Denoiser(OfUNet):
    """Stable Diffusion 1 and 2: one CLIP."""

    family, pipeline = "Stable Diffusion 1 or 2", "StableDiffusionPipeline"
    dropped = ("safety_checker", "feature_extractor", "image_encoder")
    conditions = None

    def _schedule(self) -> VariancePreserving:
        # The pipeline sets these two of any scheduler that it is made with.
        return VariancePreserving({**self._scheduler_config, "steps_offset": 1, "clip_sample": False})

    def _encode(self, texts: list[str]) -> dict[str, Tensor]:
        return {"prompt_embeds": self.frozen.encode_prompt(texts, self.device, 1, False)[0]}

    def _forward(
        self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Mapping[str, Tensor]
    ) -> Tensor:
        texts = context["prompt_embeds"].to(self.dtype)
        return network(latent, sigma, encoder_hidden_states=texts, return_dict=False)[0]


class SDXLDenoiser(OfUNet):
    """Stable Diffusion XL: two CLIPs, and sizes as conditions: those of the picture itself, uncropped.

    An empty negative prompt is what the pipeline takes where none is given: zeros, if the checkpoint says so.
    """

    family, pipeline = "Stable Diffusion XL", "StableDiffusionXLPipeline"
    dropped = ("feature_extractor", "image_encoder")
    conditions = "text_time"

    @cached_property
    def frozen(self) -> Any:
        """Diffusers' pipeline without the UNet; its decoder overflows in float16 unless it says otherwise."""
        pipeline = super().frozen
        if self.dtype == torch.float16 and pipeline.vae.config.force_upcast:
            pipeline.vae.float()
        return pipeline

    def _encode(self, texts: list[str]) -> dict[str, Tensor]:
        embeds, _, pooled, _ = self.frozen.encode_prompt(
            texts, device=self.device, do_classifier_free_guidance=False
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def _encode_negative(self, texts: list[str]) -> dict[str, Tensor]:
        context = self._encode(texts)
        if self.frozen.config.force_zeros_for_empty_prompt:
            for row in (row for row, text in enumerate(texts) if not text):
                for tensor in context.values():
                    tensor[row] = 0.0
        return context

    def _forward(
        self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Mapping[str, Tensor]
    ) -> Tensor:
        sizes = latent.new_tensor([self.height, self.width, 0, 0, self.height, self.width])
        pooled = context["pooled_prompt_embeds"].to(self.dtype)
        return network(
            latent,
            sigma,
            encoder_hidden_states=context["prompt_embeds"].to(self.dtype),
            added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes.expand(len(latent), -1)},
            return_dict=False,
        )[0]

    def _draw(self, vae: Any, latents: Tensor) -> Tensor:
        config = vae.config
        if config.latents_mean is None or config.latents_std is None:
            return super()._draw(vae, latents)
        mean, std = (
            latents.new_tensor(each).view(1, -1, 1, 1) for each in (config.latents_mean, config.latents_std)
        )
        return vae.decode(latents * std / config.scaling_factor + mean, return_dict=False)[0]
