"""Z-Image: pictures and captions in one sequence, captions as long as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from unirl_env.arguments.values import number, whole
from unirl_env.models.shared.of_diffusers import (
    OfDiffusers,
    Sizes,
    autoencoder_scale,
    warn_of_truncation,
)

PATCH = 2
"""What the pipeline asks the network for."""
MULTIPLE = 32
"""Captions are filled up to a multiple of it."""


class ZImageDenoiser(OfDiffusers):
    """Z-Image: one text encoder, whose captions come with their lengths.

    A picture's places begin behind its caption, so that captions cannot be padded to one length. With
    `rows_per_forward`, rows whose captions fill the same length are read together, and no others.

    Args:
        pretrained: A hub id or a directory.
        cfg_normalization: The most that guidance may scale a sample's norm by, as in the pipeline; 0 bounds
            nothing.
        cfg_truncation: Guidance ends where `1 - sigma` exceeds it, as in the pipeline.
        **options: Those of `OfDiffusers`.
    """

    family, pipeline = "Z-Image", "ZImagePipeline"
    classes = {"transformer": "ZImageTransformer2DModel", "vae": "AutoencoderKL"}
    lora_targets = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")

    def __init__(
        self,
        pretrained: str,
        *,
        cfg_normalization: float = 0.0,
        cfg_truncation: float = 1.0,
        **options: Any,
    ):
        self.cfg_normalization = number("cfg_normalization", cfg_normalization)
        self.cfg_truncation = number("cfg_truncation", cfg_truncation)
        super().__init__(pretrained, **options)
        # Places are counted from 1, and the picture's is behind those of the filled up caption.
        most = (self.configs["transformer"]["axes_lens"][0] - 2) // MULTIPLE * MULTIPLE
        whole("max_sequence_length", self.max_sequence_length, 1, most)

    def _sizes(self, config: Mapping[str, Any]) -> Sizes:
        scale = autoencoder_scale(self.configs["vae"])
        return Sizes(scale, PATCH, 1024, min(config["axes_lens"][1:]) * scale * PATCH)

    def _encode(self, texts: list[str]) -> dict[str, Tensor]:
        width = self.max_sequence_length
        # One token more than is kept: the pipeline does not say what it cuts.
        found, _ = self.frozen.encode_prompt(
            list(texts),  # which it writes to
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=width + 1,
        )
        lengths = torch.tensor([len(each) for each in found], device=self.device)
        if int(lengths.max()) > width:
            warn_of_truncation(self.pretrained, max(texts, key=len), width)
        embeds = torch.stack([pad(each, (0, 0, 0, width - len(each))) for each in found])
        return {"prompt_embeds": embeds, "prompt_embeds_length": lengths.clamp(max=width)}

    def _kinds(self, context: Mapping[str, Tensor]) -> Tensor | None:
        if self.rows_per_forward is None:
            return None
        return (context["prompt_embeds_length"] + MULTIPLE - 1) // MULTIPLE

    def _forward(
        self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Mapping[str, Tensor]
    ) -> Tensor:
        embeds = context["prompt_embeds"].to(self.dtype)
        lengths = context["prompt_embeds_length"].tolist()
        found = network(
            list(latent.unsqueeze(2)),
            self._time(sigma),
            [each[:length] for each, length in zip(embeds, lengths, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(found).squeeze(2)

    def _time(self, sigma: Tensor) -> Tensor:
        """From 0, pure noise, to 1, rounded as the pipeline rounds."""
        steps = self._flow.num_train_timesteps
        return (steps - sigma * steps) / steps

    def guided(self, without: Tensor, with_prompt: Tensor, guidance: float, sigma: Tensor) -> Tensor:
        """`c + (guidance - 1) (c - u)`, bounded and ended as the settings say."""
        there = with_prompt + (guidance - 1) * (with_prompt - without)
        if self.cfg_normalization > 0:
            norm, own = (each.flatten(1).norm(dim=1) for each in (there, with_prompt))
            most = self.cfg_normalization * own
            scale = torch.where(norm > most, most / norm.clamp_min(torch.finfo(norm.dtype).tiny), 1.0)
            there = there * scale.view(-1, *[1] * (there.ndim - 1))
        over = self._time(sigma).double() > self.cfg_truncation  # in float32 some times would equal it
        return torch.where(over.view(-1, *[1] * (there.ndim - 1)), with_prompt, there)
