"""Stable Diffusion 1, 2 and XL: what their UNets have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unirl_env.errors import ConfigError
from unirl_env.models.shared.of_diffusers import Sizes, autoencoder_scale
from unirl_env.models.shared.predicts_noise import PredictsNoise
from unirl_env.models.shared.texts_once import TextsOnce


class OfUNet(TextsOnce, PredictsNoise):
    """What Stable Diffusions before the third share: a UNet in `unet`, whose adapters sit on its attention.

    The pipeline's safety checker and watermark are no part of it.

    Attributes:
        conditions: The `addition_embed_type` that the family's UNets have.
    """

    trained = "unet"
    classes = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
    length = 77
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    conditions: str | None

    def __init__(self, pretrained: str, *, max_sequence_length: None = None, **options: Any):
        if max_sequence_length is not None:
            raise ConfigError(
                f"`max_sequence_length` must be null for {self.family}, got {max_sequence_length!r}: its "
                "text encoders read a number of tokens of their own, 77 as published."
            )
        super().__init__(pretrained, **options)

    def _sizes(self, config: Mapping[str, Any]) -> Sizes:
        wanted = {
            "addition_embed_type": self.conditions,
            "class_embed_type": None,
            "time_cond_proj_dim": None,
            "out_channels": config["in_channels"],
        }
        for name, value in wanted.items():
            if config.get(name) != value:
                raise ConfigError(
                    f"`{name}` of the UNet must be {value!r} for {self.family}, got {config.get(name)!r}: it "
                    "is made for other conditions, such as pictures or an embedded guidance; try one for "
                    "texts alone."
                )
        if not isinstance(config["sample_size"], int):
            raise ConfigError(
                f"`sample_size` of the UNet must be a whole number, got {config['sample_size']!r}; change it "
                "in unet/config.json."
            )
        scale = autoencoder_scale(self.configs["vae"])
        return Sizes(scale, 1, config["sample_size"] * scale)
