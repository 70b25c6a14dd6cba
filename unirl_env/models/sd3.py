"""Stable Diffusion 3 and 3.5: any directory or hub id that diffusers' own pipeline loads."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from unirl_env.models.shared.of_diffusers import TWO_STREAMS, OfDiffusers, Sizes, autoencoder_scale


class SD3Denoiser(OfDiffusers):
    """Stable Diffusion 3: pictures as they are, three text encoders of which T5 may be left out.

    Args:
        pretrained: A hub id or a directory.
        schedule: `"flow"` by default; the pipeline's own has a last step that is nearly empty.
        **options: Those of `OfDiffusers`.
    """

    family, pipeline = "Stable Diffusion 3", "StableDiffusion3Pipeline"
    classes = {"transformer": "SD3Transformer2DModel", "vae": "AutoencoderKL"}
    optional = ("text_encoder_3", "tokenizer_3")
    even, length = False, 256
    lora_targets = TWO_STREAMS

    def __init__(self, pretrained: str, *, schedule: str = "flow", **options: Any):
        super().__init__(pretrained, schedule=schedule, **options)

    def _sizes(self, config: Mapping[str, Any]) -> Sizes:
        scale, patch = autoencoder_scale(self.configs["vae"]), config["patch_size"]
        most = config["pos_embed_max_size"] * scale * patch
        return Sizes(scale, patch, config["sample_size"] * scale, most)

    @cached_property
    def frozen(self) -> Any:
        """Diffusers' pipeline without the transformer's weights."""
        pipeline = super().frozen
        if pipeline.text_encoder_3 is None:
            # Without T5 the pipeline asks the transformer how wide its zeros must be: its shape is enough.
            pipeline.transformer = self.outline()
        return pipeline

    def _encode(self, texts: list[str]) -> dict[str, Tensor]:
        embeds, _, pooled, _ = self.frozen.encode_prompt(
            prompt=texts,
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def _forward(
        self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Mapping[str, Tensor]
    ) -> Tensor:
        return network(
            hidden_states=latent,
            timestep=sigma * self._flow.num_train_timesteps,
            encoder_hidden_states=context["prompt_embeds"].to(self.dtype),
            pooled_projections=context["pooled_prompt_embeds"].to(self.dtype),
            return_dict=False,
        )[0]
