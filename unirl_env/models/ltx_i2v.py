"""LTX-Video from a text and a picture, which the clip begins with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unirl_env.models.ltx import LTXDenoiser
from unirl_env.models.shared.from_picture import FIRST, FromPicture
from unirl_env.models.shared.noisy_decoder import SEED


class LTXI2VDenoiser(FromPicture, LTXDenoiser):
    """LTX-Video from a text and one picture (`Prompt.images`), whose latent begins the clip's.

    The picture is scaled to the clip's size, whatever its aspect, as the pipeline does. The pipeline draws
    its latent from what the encoder says; here it is one draw, the same whenever it is asked for.

    Args:
        pretrained: A hub id or a directory; a checkpoint of clips from text is the same.
        **options: Those of `LTXDenoiser`.
    """

    family, pipeline = "LTX-Video from a picture", "LTXImageToVideoPipeline"
    also = (LTXDenoiser.pipeline,)
    leads = True
    along = 1

    def _begin(self, picture: Any) -> dict[str, Tensor]:
        """The picture's latent, as a clip of one frame."""
        pipeline = self.frozen
        pixels = pipeline.video_processor.preprocess(picture, height=self.height, width=self.width)
        tokens, _ = pipeline.prepare_latents(
            *(pixels.to(self.device, self.dtype), 1, self.latent_shape[-1], self.height, self.width, 1),
            *(torch.float32, self.device, torch.Generator().manual_seed(SEED)),
        )
        return {FIRST: tokens}
