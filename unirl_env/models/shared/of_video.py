"""Pipelines of diffusers that make clips: frames beside sides, and samples in bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from unirl_env.arguments.values import number, whole
from unirl_env.errors import ConfigError
from unirl_env.models.shared.fixed_batches import filmed
from unirl_env.models.shared.of_diffusers import OfDiffusers, Sizes
from unirl_env.types import Sample


class OfVideo(OfDiffusers):
    """A family of clips, whose decoder takes latents `[n, C, F', H', W']`.

    Args:
        pretrained: A hub id or a directory.
        num_frames: F, frames of a clip; None takes the family's. One more than a multiple of the decoder's
            stride in time, so that F' = (F - 1) / stride + 1.
        fps: Frames that a clip shows in a second; None takes the family's.
        **options: Those of `OfDiffusers`.

    Attributes:
        num_frames: F.
        latent_frames: F'.
        frames: F, where none is asked for.
        frames_at_once: How many of them the decoder makes in one go, which bounds how many clips go through
            it together; None is all.
        rate: `fps`, where none is given.

    Raises:
        ConfigError: If the decoder cannot make so many frames; names the nearest numbers that it can.
    """

    makes = "video"
    frames: ClassVar[int]
    frames_at_once: ClassVar[int | None] = None
    rate: ClassVar[float]

    def __init__(
        self, pretrained: str, *, num_frames: int | None = None, fps: float | None = None, **options: Any
    ):
        self.num_frames = whole("num_frames", self.frames if num_frames is None else num_frames, 1)
        self.fps = number("fps", self.rate if fps is None else fps)
        if self.fps <= 0:
            raise ConfigError(f"`fps` must be positive, got {fps!r}; try {self.rate:g}.")
        super().__init__(pretrained, **options)

    def _frames(self, sizes: Sizes) -> int:
        further, odd = divmod(self.num_frames - 1, sizes.stride)
        if odd:
            below = further * sizes.stride + 1
            raise ConfigError(
                f"`num_frames` must be one more than a multiple of {sizes.stride}, got {self.num_frames}; "
                f"try {below} or {below + sizes.stride}."
            )
        return further + 1

    def _shape(self, rows: int, columns: int) -> tuple[int, ...]:
        return self.configs[self.trained]["in_channels"], self.latent_frames, rows, columns

    def _times(self, sigma: Tensor) -> Tensor:
        """The network's times `[N]` of noise levels `[N]`, or one for each of its tokens, `[N, L]`."""
        return sigma * self._flow.num_train_timesteps

    def _shown(self, draw: Callable[[Tensor], Tensor], latents: Tensor) -> list[Sample]:
        at_once = min(self.num_frames, self.frames_at_once or self.num_frames)
        return filmed(draw, latents, at_once, self.height, self.width)
