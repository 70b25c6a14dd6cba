"""HunyuanVideo 1.5 from text: a state beside a condition, texts and what stands in quotes read apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unirl_env.errors import ConfigError
from unirl_env.models.shared.attention_layers import two_streams
from unirl_env.models.shared.exports import write_layers
from unirl_env.models.shared.guiders import why_unguided
from unirl_env.models.shared.of_diffusers import Sizes, warn_of_truncation
from unirl_env.models.shared.of_video import OfVideo
from unirl_env.models.shared.unequal import padded_texts


class HunyuanVideo15Denoiser(OfVideo):
    """HunyuanVideo 1.5 from text; `guidance` is the scale of the pipeline's guider, whose own is not read.

    Texts are padded to `max_sequence_length` in observations. The network reads them as long as the longest
    of a batch; with `rows_per_forward`, where no bit may depend on it, in full.

    Args:
        pretrained: A hub id or a directory, in the layout of diffusers.
        tiling: True unless it is given: whole, a clip of 121 frames at 480 x 848 attends with a mask of
            4.5 GiB in half precision.
        **options: Those of `OfVideo`.

    Raises:
        ConfigError: If the network is of a variant that needs more than a text.
    """

    family, pipeline = "HunyuanVideo 1.5", "HunyuanVideo15Pipeline"
    classes = {"transformer": "HunyuanVideo15Transformer3DModel", "vae": "AutoencoderKLHunyuanVideo15"}
    published: ClassVar[str] = "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v"
    length = 1000
    frames, rate = 121, 24.0

    def __init__(self, pretrained: str, *, tiling: bool = True, **options: Any):
        super().__init__(pretrained, tiling=tiling, **options)
        self.lora_targets = two_streams(self.configs["transformer"]["num_layers"])
        self.unguided = why_unguided(self.source, (self._index.get("guider") or [None])[-1])

    def _sizes(self, config: Mapping[str, Any]) -> Sizes:
        vae = self.configs["vae"]
        wanted = {"in_channels": 2 * vae["latent_channels"] + 1, "use_meanflow": False, "patch_size_t": 1}
        for name, value in wanted.items():
            if config.get(name, value) != value:
                raise ConfigError(
                    f"`{name}` of the transformer must be {value} for a {self.pipeline}, got "
                    f"{config[name]!r}; try {self.published}."
                )
        scale, stride = vae["spatial_compression_ratio"], vae["temporal_compression_ratio"]
        return Sizes(scale, config["patch_size"], config["target_size"], stride=stride)

    def _shape(self, rows: int, columns: int) -> tuple[int, ...]:
        return self.configs["vae"]["latent_channels"], self.latent_frames, rows, columns

    def _encode(self, texts: list[str]) -> dict[str, Tensor]:
        pipeline, width = self.frozen, self.max_sequence_length
        # One token more than is kept: the pipeline does not say what it cuts.
        pipeline.tokenizer_max_length = width + 1
        embeds, mask, glyphs, glyph_mask = pipeline.encode_prompt(texts, self.device, batch_size=len(texts))
        if mask[:, width:].any():
            warn_of_truncation(self.pretrained, max(texts, key=len), width)
        return {
            **padded_texts(embeds, mask, width),
            "prompt_embeds_2": glyphs,
            "prompt_embeds_mask_2": glyph_mask.long(),
        }

    def _forward(
        self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Mapping[str, Tensor]
    ) -> Tensor:
        embeds, mask = self._read(context, "")
        glyphs, glyph_mask = self._read(context, "_2")
        condition, image = self._beside(latent, context)
        return network(
            hidden_states=torch.cat([latent, condition], 1),
            # Rounded where the pipeline rounds.
            timestep=(sigma * self._flow.num_train_timesteps).to(latent.dtype),
            encoder_hidden_states=embeds,
            encoder_attention_mask=mask,
            encoder_hidden_states_2=glyphs,
            encoder_attention_mask_2=glyph_mask,
            image_embeds=image,
            return_dict=False,
        )[0]

    def _read(self, context: Mapping[str, Tensor], which: str) -> tuple[Tensor, Tensor]:
        """What one of the encoders says, and its mask, to the last token that counts for any row."""
        embeds, mask = context[f"prompt_embeds{which}"], context[f"prompt_embeds_mask{which}"]
        if self.rows_per_forward is None:
            width = int(mask.any(0).nonzero().max()) + 1 if mask.any() else 0
            embeds, mask = embeds[:, :width], mask[:, :width]
        return embeds.to(self.dtype), mask.to(self.dtype)

    def _beside(self, latent: Tensor, context: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The condition's latents and mask `[N, C + 1, F', H', W']`, and what is seen in its picture.

        Of a text alone zeros, and no token: the pipeline's are masked out.
        """
        count, channels, *places = latent.shape
        width = self.configs["transformer"]["image_embed_dim"]
        return latent.new_zeros(count, channels + 1, *places), latent.new_zeros(count, 0, width)

    def _draw(self, vae: Any, latents: Tensor) -> Tensor:
        """One at a time: the decoder's mask fits a batch of one alone."""
        return torch.cat([super(HunyuanVideo15Denoiser, self)._draw(vae, one) for one in latents.split(1)])

    def save_adapters(self, network: nn.Module, directory: str) -> None:
        """Write `pytorch_lora_weights.safetensors`, which `pipeline.transformer.load_lora_adapter` reads."""
        write_layers(network, directory)
