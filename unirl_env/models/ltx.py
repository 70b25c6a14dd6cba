"""LTX-Video from text: packed latents, and a network that is told how fast the clip is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from unirl_env.arguments.values import number
from unirl_env.errors import ConfigError
from unirl_env.models.shared.noisy_decoder import decoded_alike, same_noise
from unirl_env.models.shared.of_diffusers import SELF_AND_CROSS, Sizes
from unirl_env.models.shared.of_video import OfVideo

SIDE = 512
"""Pixels of a side where none are asked for: no configuration of the transformer tells them."""


class LTXDenoiser(OfVideo):
    """LTX-Video from text; latents are tokens `[F' x H' x W', C]`, texts come with a mask.

    Args:
        pretrained: A hub id or a directory.
        decode_timestep: The noise level that a decoder with `timestep_conditioning` is told, the pipeline's 0
            unless it is given; 0.05 as published.
        decode_noise_scale: How much noise it is given instead of the latent, in [0, 1]; None takes
            `decode_timestep`; 0.025 as published. It is the same noise for every clip.
        **options: Those of `OfVideo`.

    Attributes:
        frame_rate: `fps`, as the pipeline calls it.

    Raises:
        ConfigError: If the decoder has no such input, or the network packs several places in a token.
    """

    family, pipeline = "LTX-Video", "LTXPipeline"
    classes = {"transformer": "LTXVideoTransformer3DModel", "vae": "AutoencoderKLLTXVideo"}
    length = 128
    frames, rate = 161, 25.0
    lora_targets = SELF_AND_CROSS

    def __init__(
        self,
        pretrained: str,
        *,
        decode_timestep: float | None = None,
        decode_noise_scale: float | None = None,
        **options: Any,
    ):
        super().__init__(pretrained, **options)
        self.frame_rate = self.fps  # the pipeline's name for it
        self._noisy = bool(self.configs["vae"].get("timestep_conditioning"))
        given = {"decode_timestep": decode_timestep, "decode_noise_scale": decode_noise_scale}
        for name, value in ((name, value) for name, value in given.items() if value is not None):
            if not self._noisy:
                raise ConfigError(f"`{name}` must be left out, got {value!r}: the decoder is told no time.")
            if not 0 <= number(name, value) <= 1:
                raise ConfigError(f"`{name}` must be in [0, 1], got {value!r}; try 0.05 and 0.025.")
        self.decode_timestep = decode_timestep or 0.0
        self.decode_noise_scale = self.decode_timestep if decode_noise_scale is None else decode_noise_scale

    def _measure(self, height: int | None, width: int | None) -> None:
        named = str(self._index.get("_class_name"))
        if named.startswith("LTX2"):
            raise self.source.not_found(
                f"its model_index.json is of {named}, whose network denoises two states at once, video and "
                "sound, and an episode has one; try Lightricks/LTX-Video"
            )
        super()._measure(height, width)

    def _sizes(self, config: Mapping[str, Any]) -> Sizes:
        for name in ("patch_size", "patch_size_t"):
            if config.get(name, 1) != 1:
                raise ConfigError(
                    f"`{name}` of the transformer must be 1, got {config[name]!r}; try Lightricks/LTX-Video."
                )
        vae = self.configs["vae"]
        halved = 2 ** sum(vae["spatio_temporal_scaling"])
        self._scale = vae.get("spatial_compression_ratio") or vae["patch_size"] * halved
        self._stride = vae.get("temporal_compression_ratio") or vae["patch_size_t"] * halved
        return Sizes(self._scale, 1, SIDE, stride=self._stride)

    def _shape(self, rows: int, columns: int) -> tuple[int, ...]:
        self._grid = (self.latent_frames, rows, columns)
        return self.latent_frames * rows * columns, self.configs["transformer"]["in_channels"]

    def _encode(self, texts: list[str]) -> dict[str, Tensor]:
        embeds, mask, _, _ = self.frozen.encode_prompt(
            texts, None, False, max_sequence_length=self.max_sequence_length, device=self.device
        )
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask.long()}

    def _forward(
        self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Mapping[str, Tensor]
    ) -> Tensor:
        frames, rows, columns = self._grid
        return network(
            hidden_states=latent,
            timestep=self._times(sigma),
            encoder_hidden_states=context["prompt_embeds"].to(self.dtype),
            encoder_attention_mask=context["prompt_attention_mask"],
            num_frames=frames,
            height=rows,
            width=columns,
            rope_interpolation_scale=(self._stride / self.fps, self._scale, self._scale),
            return_dict=False,
        )[0]

    def _draw(self, vae: Any, latents: Tensor) -> Tensor:
        """Each by itself, with the same noise where the decoder takes any."""
        pipeline = self.frozen
        grid = pipeline._unpack_latents(latents, *self._grid)
        scales = (vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
        grid, when, noisy = pipeline._denormalize_latents(grid, *scales), None, self.decode_noise_scale
        if self._noisy:
            when = grid.new_full((1,), self.decode_timestep)
            grid = (1 - noisy) * grid + noisy * same_noise(grid)
        return decoded_alike(vae, grid, when)  # some of its layers add noise, too
