"""HunyuanVideo 1.5 from a text and a picture, which the clip begins with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unirl_env.errors import PromptError
from unirl_env.media.pixels import load_picture, to_pil
from unirl_env.models.hunyuan_video15 import HunyuanVideo15Denoiser
from unirl_env.types import Prompt


class HunyuanVideo15I2VDenoiser(HunyuanVideo15Denoiser):
    """HunyuanVideo 1.5 from a picture: its latent stands beside the first frame, which moves as all do.

    A picture is scaled and cut to `height` and `width`, which the pipeline chooses by the picture's aspect.

    Args:
        pretrained: A hub id or a directory, in the layout of diffusers.
        **options: Those of `HunyuanVideo15Denoiser`.
    """

    family, pipeline = "HunyuanVideo 1.5 I2V", "HunyuanVideo15ImageToVideoPipeline"
    published = "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_i2v"

    def check_prompt(self, prompt: Prompt) -> None:
        """Refuse a prompt without a picture, or with more than one."""
        if len(prompt.images) != 1:
            raise PromptError(
                f"A prompt must bring 1 picture that the clip begins with, got {len(prompt.images)} in "
                f"{prompt.id[:60]!r}; try `images` of that number, or unirl/HunyuanVideo15-T2V-v0."
            )

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt], *, negative: bool = False) -> dict[str, Tensor]:
        """What the encoders say of texts and of pictures, and the pictures' latents, each `[B, ...]`."""
        rows = [self._of(prompt) for prompt in prompts]
        pictures = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        return {**super().encode(prompts, negative=negative), **pictures}

    def _of(self, prompt: Prompt) -> dict[str, Tensor]:
        self.check_prompt(prompt)
        pipeline, size = self.frozen, {"height": self.height, "width": self.width}
        picture = to_pil(load_picture(prompt.images[0]))
        picture = pipeline.video_processor.resize(picture, **size, resize_mode="crop")
        latents = pipeline._get_image_latents(
            pipeline.vae, pipeline.video_processor, picture, **size, device=self.device
        )
        seen = pipeline._get_image_embeds(
            pipeline.image_encoder, pipeline.feature_extractor, picture, self.device
        )
        return {"image_latents": latents, "image_embeds": seen}

    def _beside(self, latent: Tensor, context: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The picture's latent and a mask of ones in the first frame, zeros behind it."""
        count, channels, *places = latent.shape
        condition: Any = latent.new_zeros(count, channels + 1, *places)
        condition[:, :channels, :1] = context["image_latents"].to(latent)
        condition[:, channels, 0] = 1.0
        return condition, context["image_embeds"].to(latent)
