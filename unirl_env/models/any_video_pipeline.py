"""Any flow pipeline of diffusers that makes clips and has no leaf, by what can be read off its calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from unirl_env.arguments.values import number, whole
from unirl_env.errors import ConfigError
from unirl_env.models.any_pipeline import PipelineDenoiser
from unirl_env.models.shared.fixed_batches import filmed
from unirl_env.models.shared.recording import FRAMES
from unirl_env.types import Sample

FPS = 16.0
"""Frames that a clip shows in a second, where none are given: pipelines do not say."""
LEAVES: Mapping[str, str] = {
    "HunyuanVideo15ImageToVideoPipeline": "unirl/HunyuanVideo15-I2V-v0",
    "HunyuanVideo15Pipeline": "unirl/HunyuanVideo15-T2V-v0",
    "HunyuanVideoPipeline": "unirl/HunyuanVideo-T2V-v0",
    "LTXImageToVideoPipeline": "unirl/LTX-I2V-v0",
    "LTXPipeline": "unirl/LTX-T2V-v0",
    "WanImageToVideoPipeline": "unirl/Wan-I2V-v0",
    "WanPipeline": "unirl/Wan-T2V-v0",
}
"""By the pipeline's class, the environment of its leaf."""


class VideoPipelineDenoiser(PipelineDenoiser):
    """A flow pipeline of clips by what it does; see `PipelineDenoiser`.

    Args:
        pretrained: A hub id or a directory.
        num_frames: F; None takes the pipeline's own.
        fps: Frames that a clip shows in a second, told to nobody but who shows it; None is 16. Where a
            pipeline takes something of the kind, `arguments` say it.
        **options: Those of `PipelineDenoiser`.

    Raises:
        ConfigError: If the pipeline has a leaf, whose environment is named, or cannot be read off.
    """

    family = "a flow pipeline of diffusers that makes clips"
    makes = "video"

    def __init__(
        self, pretrained: str, *, num_frames: int | None = None, fps: float | None = None, **options: Any
    ):
        self._frames_asked = None if num_frames is None else whole("num_frames", num_frames, 1)
        self.fps = number("fps", FPS if fps is None else fps)
        if self.fps <= 0:
            raise ConfigError(f"`fps` must be positive, got {fps!r}; try {FPS:g}.")
        super().__init__(pretrained, **options)

    def _measure(self, height: int | None, width: int | None) -> None:
        named = self._index.get("_class_name")
        if named in LEAVES:
            raise ConfigError(
                f"`pretrained` must be of a pipeline that has no environment of its own, got a {named}; try "
                f"{LEAVES[named]}."
            )
        super()._measure(height, width)

    def _fit(self, height: int | None, width: int | None) -> None:
        super()._fit(height, width)
        takes = inspect.signature(self._pipeline_class.__call__).parameters
        named = next((name for name in FRAMES if name in takes), None)
        if named is not None:
            self._asked[named] = self._frames_asked
            if self._frames_asked is not None:
                self.arguments[named] = self._frames_asked
        elif self._frames_asked is not None:
            raise ConfigError(
                f"`num_frames` must be null for {self.pipeline}, whose `__call__` takes none of "
                f"{', '.join(FRAMES)}, got {self._frames_asked}; try `arguments`."
            )

    @property
    def num_frames(self) -> int:
        """F, frames of a clip."""
        frames = self.way.num_frames
        assert frames is not None  # it makes clips, or was refused
        return frames

    def _shown(self, draw: Callable[[Tensor], Tensor], latents: Tensor) -> list[Sample]:
        return filmed(draw, latents, self.num_frames, self.height, self.width)

    def _draw(self, vae: Any, latents: Tensor) -> Tensor:
        return super()._draw(vae, latents).transpose(1, 2)
