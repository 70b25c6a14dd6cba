"""HunyuanVideo 1.0 from text: Llama's states and CLIP's pooled answer, and guidance as an input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unirl_env.errors import ConfigError
from unirl_env.models.shared.of_diffusers import TWO_STREAMS, Sizes
from unirl_env.models.shared.of_video import OfVideo
from unirl_env.models.shared.told_guidance import told_guidance

SIDE = 544
"""Pixels of a side where none are asked for: no configuration of the transformer tells them."""


class HunyuanVideoDenoiser(OfVideo):
    """HunyuanVideo 1.0 from text; latents are the network's own, and texts come with a mask.

    Args:
        pretrained: A hub id or a directory.
        embedded_guidance: What the pipeline calls `guidance_scale`, an input of the network, the same in
            training and evaluation; None takes the pipeline's 6. `guidance` is its `true_cfg_scale`.
        **options: Those of `OfVideo`.

    Attributes:
        embedded_guidance: What the network is told; None where it has no such input.

    Raises:
        ConfigError: If the network has no such input, or takes a picture beside the text.
    """

    family, pipeline = "HunyuanVideo", "HunyuanVideoPipeline"
    classes = {"transformer": "HunyuanVideoTransformer3DModel", "vae": "AutoencoderKLHunyuanVideo"}
    length = 256
    frames, rate = 129, 24.0
    lora_targets = TWO_STREAMS

    def __init__(self, pretrained: str, *, embedded_guidance: float | None = None, **options: Any):
        super().__init__(pretrained, **options)
        self.embedded_guidance = told_guidance(
            self._network_class, self.configs["transformer"], 6.0, embedded_guidance, self.pretrained
        )

    def _sizes(self, config: Mapping[str, Any]) -> Sizes:
        for name, value in {"image_condition_type": None, "patch_size_t": 1}.items():
            if config.get(name, value) != value:
                raise ConfigError(
                    f"`{name}` of the transformer must be {value} for a {self.pipeline}, got "
                    f"{config[name]!r}; try hunyuanvideo-community/HunyuanVideo."
                )
        vae = self.configs["vae"]
        return Sizes(
            vae["spatial_compression_ratio"],
            config["patch_size"],
            SIDE,
            stride=vae["temporal_compression_ratio"],
        )

    def _encode(self, texts: list[str]) -> dict[str, Tensor]:
        pipeline, width = self.frozen, self.max_sequence_length
        embeds, pooled, mask = pipeline.encode_prompt(texts, device=self.device, max_sequence_length=width)
        return {
            "prompt_embeds": embeds,
            "pooled_prompt_embeds": pooled,
            "prompt_attention_mask": mask.long(),
        }

    def _forward(
        self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Mapping[str, Tensor]
    ) -> Tensor:
        scale = self.embedded_guidance
        return network(
            hidden_states=latent,
            timestep=sigma * self._flow.num_train_timesteps,
            encoder_hidden_states=context["prompt_embeds"].to(self.dtype),
            encoder_attention_mask=context["prompt_attention_mask"].to(self.dtype),
            pooled_projections=context["pooled_prompt_embeds"].to(self.dtype),
            # Rounded where the pipeline rounds.
            guidance=None if scale is None else torch.full_like(sigma, scale, dtype=self.dtype) * 1000.0,
            return_dict=False,
        )[0]
