"""Qwen-Image: pictures of texts that a vision-language model reads, in packed latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unirl_env.arguments.values import whole
from unirl_env.errors import ConfigError
from unirl_env.models.shared.attention_layers import two_streams
from unirl_env.models.shared.guidance_rules import renormed
from unirl_env.models.shared.of_diffusers import OfDiffusers, Sizes, warn_of_truncation
from unirl_env.models.shared.unequal import padded_texts

PATCH = 2
"""Places of a side that the pipeline packs into one token."""
VARIANTS = ("guidance_embeds", "use_additional_t_cond", "use_layer3d_rope")
"""Settings of networks that take more than these pipelines give."""


class QwenImageDenoiser(OfDiffusers):
    """Qwen-Image: one text encoder, texts of any length with a mask, guidance that keeps norms.

    Texts are padded to `max_sequence_length` in observations. The network reads them as long as the longest
    of a batch; with `rows_per_forward`, where no bit may depend on the batch, in full.

    Args:
        pretrained: A hub id or a directory.
        **options: Those of `OfDiffusers`.

    Raises:
        ConfigError: If the network is of a variant that needs more than a text.
    """

    family, pipeline = "Qwen-Image", "QwenImagePipeline"
    classes = {"transformer": "QwenImageTransformer2DModel", "vae": "AutoencoderKLQwenImage"}
    longest: int | None = 1024

    def __init__(self, pretrained: str, **options: Any):
        super().__init__(pretrained, **options)
        whole("max_sequence_length", self.max_sequence_length, 1, self.longest)
        # Texts are padded to the longest of those read together, which shows in the last bits.
        self.prompts_at_once = 1
        self.lora_targets = two_streams(self.configs["transformer"]["num_layers"])

    def _sizes(self, config: Mapping[str, Any]) -> Sizes:
        for name in VARIANTS:
            if config.get(name):
                raise ConfigError(
                    f"`{name}` of the transformer must be false for a {self.pipeline}, got {config[name]!r}; "
                    "try Qwen/Qwen-Image, or `denoiser='pipeline'`."
                )
        self._scale = 2 ** len(self.configs["vae"]["temperal_downsample"])
        self._unit = PATCH * self._scale  # pixels of a side for each token
        return Sizes(self._scale, PATCH, 128 * self._scale)

    def _shape(self, rows: int, columns: int) -> tuple[int, ...]:
        return (rows // PATCH) * (columns // PATCH), self.configs["transformer"]["in_channels"]

    def _encode(self, texts: list[str]) -> dict[str, Tensor]:
        width = self.max_sequence_length
        # One token more than is kept: the pipeline does not say what it cuts.
        embeds, mask = self.frozen.encode_prompt(texts, device=self.device, max_sequence_length=width + 1)
        if embeds.shape[1] > width:
            warn_of_truncation(self.pretrained, max(texts, key=len), width)
        return padded_texts(embeds, mask, width)

    def _forward(
        self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Mapping[str, Tensor]
    ) -> Tensor:
        embeds, mask = context["prompt_embeds"], context["prompt_embeds_mask"]
        if self.rows_per_forward is None:
            width = int(mask.sum(1).max())
            embeds, mask = embeds[:, :width], mask[:, :width]
        steps = self._flow.num_train_timesteps
        beside, sizes = self._beside(context)
        return network(
            hidden_states=torch.cat([latent, *beside], 1),
            # Rounded where the pipeline rounds.
            timestep=(sigma * steps).to(latent.dtype) / steps,
            encoder_hidden_states=embeds.to(self.dtype),
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, self.height // self._unit, self.width // self._unit), *sizes]] * len(latent),
            return_dict=False,
        )[0][:, : latent.shape[1]]

    def _beside(self, context: Mapping[str, Tensor]) -> tuple[list[Tensor], list[tuple[int, ...]]]:
        """Tokens `[N, n, D]` that stand behind the latent's, and the grids that they fill."""
        return [], []

    def _draw(self, vae: Any, latents: Tensor) -> Tensor:
        latents = self.frozen._unpack_latents(latents, self.height, self.width, self._scale)
        mean, std = (latents.new_tensor(vae.config[f"latents_{name}"]) for name in ("mean", "std"))
        latents = latents * std.view(-1, 1, 1, 1) + mean.view(-1, 1, 1, 1)
        return vae.decode(latents, return_dict=False)[0][:, :, 0]

    def guided(self, without: Tensor, with_prompt: Tensor, guidance: float, sigma: Tensor) -> Tensor:
        """`u + guidance (c - u)`, each token scaled to the norm that it has in `c`."""
        return renormed(without, with_prompt, guidance)
