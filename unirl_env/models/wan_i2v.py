"""Wan from a picture: clips that begin with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unirl_env.errors import ConfigError, PromptError
from unirl_env.media.pixels import load_picture, to_pil
from unirl_env.models.wan import WanDenoiser
from unirl_env.models.wan_experts import HIGH
from unirl_env.types import Prompt

SEEING_LENGTH = 512
"""Tokens of a text, from which networks that see tell where the picture's tokens end."""


class WanI2VDenoiser(WanDenoiser):
    """Wan 2.1 and 2.2 (A14B) from a text and one picture (`Prompt.images`), the clip's first frame.

    What is known of the clip is no part of its latent: it stands beside it when the network reads. The
    picture is scaled to the clip's size, whatever its aspect, as the pipeline does.

    Args:
        pretrained: A hub id or a directory.
        **options: Those of `WanDenoiser`.

    Raises:
        ConfigError: If `max_sequence_length` is not 512 for a network that sees the picture by itself, too.
        ModelNotFound: If the checkpoint takes something else than one picture.
    """

    family, pipeline = "Wan from a picture", "WanImageToVideoPipeline"
    whole = ("vae", "image_encoder")
    optional = ("image_encoder", "image_processor")

    def __init__(self, pretrained: str, **options: Any):
        super().__init__(pretrained, **options)
        # The network would take so many tokens fewer or more for the picture's, and say nothing.
        if self._sees and self.max_sequence_length != SEEING_LENGTH:
            raise ConfigError(
                f"`max_sequence_length` must be {SEEING_LENGTH} for a network with image embeddings, which "
                f"parts texts from pictures there, got {self.max_sequence_length}; try {SEEING_LENGTH}."
            )
        # A prompt that is filled up with copies would have its picture encoded as often.
        self.prompts_at_once = 1

    @property
    def _sees(self) -> bool:
        """Whether the network reads the picture's embeddings, too, as those of 2.1 do."""
        return self.configs[HIGH].get("image_dim") is not None

    def _require_pipeline(self) -> None:
        super()._require_pipeline()
        config, vae = self.configs[HIGH], self.configs["vae"]
        wanted = 2 * vae["z_dim"] + vae.get("scale_factor_temporal", 4)
        for wrong, cause in (
            (
                self._index.get("expand_timesteps"),
                "it keeps the picture in the latent (TI2V-5B), where it moves",
            ),
            (config.get("pos_embed_seq_len") is not None, "it takes a first and a last picture"),
            (
                config["in_channels"] != wanted,
                f"its network reads {config['in_channels']} channels, and those of a latent, a picture and a "
                f"mask are {wanted}",
            ),
            (
                self._sees and not self._has("image_encoder"),
                "its network sees, and it has no `image_encoder`",
            ),
        ):
            if wrong:
                raise self.source.not_found(cause)

    def _shape(self, rows: int, columns: int) -> tuple[int, ...]:
        return self.configs["vae"]["z_dim"], self.latent_frames, rows, columns

    def check_prompt(self, prompt: Prompt) -> None:
        """Refuse a prompt without a picture, or with several."""
        if len(prompt.images) != 1:
            raise PromptError(
                f"A prompt must bring one picture to begin with, got {len(prompt.images)} in "
                f"{prompt.id[:60]!r}; try `images` of one."
            )

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt], *, negative: bool = False) -> dict[str, Tensor]:
        """What the encoders say of texts and pictures, and what is known of the clips, each `[B, ...]`."""
        rows = [self._shown(prompt) for prompt in prompts]
        seen = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        return {**super().encode(prompts, negative=negative), **seen}

    def _shown(self, prompt: Prompt) -> dict[str, Tensor]:
        """Of one picture the latents of a clip of it and of nothing, below a mask; and its embeddings."""
        self.check_prompt(prompt)
        pipeline, picture = self.frozen, to_pil(load_picture(prompt.images[0]))
        pixels = pipeline.video_processor.preprocess(picture, height=self.height, width=self.width)
        noise = torch.zeros(1, *self.latent_shape, device=self.device)
        sizes = (self.latent_shape[0], self.height, self.width, self.num_frames)
        place = {"dtype": torch.float32, "device": self.device}
        _, known = pipeline.prepare_latents(pixels.to(**place), 1, *sizes, **place, latents=noise)
        found = {"condition": known.to(self.dtype)}
        if self._sees:
            found["image_embeds"] = pipeline.encode_image(picture, self.device).to(self.dtype)
        return found

    def _forward(
        self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Mapping[str, Tensor]
    ) -> Tensor:
        beside = torch.cat([latent, context["condition"].to(latent.dtype)], 1)
        return super()._forward(network, beside, sigma, context)
