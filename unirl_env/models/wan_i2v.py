"""Wan from a picture: clips that begin with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unirl_env.errors import ConfigError
from unirl_env.models.shared.from_picture import FIRST, FromPicture
from unirl_env.models.wan import WanDenoiser
from unirl_env.models.wan_experts import HIGH

SEEING_LENGTH = 512
"""Tokens of a text, from which networks that see tell where the picture's tokens end."""


class WanI2VDenoiser(FromPicture, WanDenoiser):
    """Wan 2.1 and 2.2 from a text and one picture (`Prompt.images`), the clip's first frame.

    What is known of the clip is no part of its latent: it stands beside it when the network reads, and in
    TI2V-5B before it (`leads`). The picture is scaled to the clip's size, whatever its aspect, as the
    pipeline does.

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

    @property
    def _sees(self) -> bool:
        """Whether the network reads the picture's embeddings, too, as those of 2.1 do."""
        return self.configs[HIGH].get("image_dim") is not None

    def _require_pipeline(self) -> None:
        self.leads = bool(self._index.get("expand_timesteps"))
        # TI2V-5B is one checkpoint for both, and published as one of clips from text.
        self.also = (WanDenoiser.pipeline,) if self.leads else ()
        super()._require_pipeline()
        config, vae = self.configs[HIGH], self.configs["vae"]
        channels = vae["z_dim"]
        wanted = channels if self.leads else 2 * channels + vae.get("scale_factor_temporal", 4)
        read = "a latent" if self.leads else "a latent, a picture and a mask"
        for wrong, cause in (
            (config.get("pos_embed_seq_len") is not None, "it takes a first and a last picture"),
            (
                config["in_channels"] != wanted,
                f"its network reads {config['in_channels']} channels, and those of {read} are {wanted}",
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

    def _begin(self, picture: Any) -> dict[str, Tensor]:
        """The latents of a clip of the picture and of nothing, below a mask; and its embeddings.

        Where the picture leads, its latent.
        """
        pipeline = self.frozen
        pixels = pipeline.video_processor.preprocess(picture, height=self.height, width=self.width)
        noise = torch.zeros(1, *self.latent_shape, device=self.device)
        sizes = (self.latent_shape[0], self.height, self.width, self.num_frames)
        place = {"dtype": torch.float32, "device": self.device}
        _, known, *_ = pipeline.prepare_latents(pixels.to(**place), 1, *sizes, **place, latents=noise)
        if self.leads:
            return {FIRST: known}
        found = {"condition": known.to(self.dtype)}
        if self._sees:
            found["image_embeds"] = pipeline.encode_image(picture, self.device).to(self.dtype)
        return found

    def _forward(
        self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Mapping[str, Tensor]
    ) -> Tensor:
        if not self.leads:
            latent = torch.cat([latent, context["condition"].to(latent.dtype)], 1)
        return super()._forward(network, latent, sigma, context)
