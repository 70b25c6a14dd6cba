"""Pictures and clips as files: frames are uint8 `[H, W, 3]` arrays."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unirl_env.errors import ConfigError, ContractError, MissingExtra

Frames = Sequence[np.ndarray]

LOSSLESS = 256
"""Side in pixels up to which an animated WebP keeps every bit."""
QUALITY = 90
"""Of a larger one."""


def to_frame(image: Tensor) -> np.ndarray:
    """`[3, H, W]` in [0, 1], or uint8, as uint8 `[H, W, 3]`, rounded; what is not finite becomes black.

    Raises:
        ContractError: If the picture has another shape.
    """
    if image.ndim != 3 or image.shape[0] != 3:
        raise ContractError(f"A picture must be [3, H, W], got shape {list(image.shape)}.")
    image = image.detach().cpu()
    if image.dtype != torch.uint8:
        image = image.float().nan_to_num(0.0, 0.0, 0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
    return image.permute(1, 2, 0).contiguous().numpy()


def clip_frames(video: Tensor) -> list[np.ndarray]:
    """The frames of `[F, 3, H, W]`, uint8 or in [0, 1], likewise.

    Raises:
        ContractError: If the clip has another shape, or no frame.
    """
    if video.ndim != 4 or video.shape[1] != 3 or not len(video):
        raise ContractError(f"A clip must be [F, 3, H, W] with a frame at least, got {list(video.shape)}.")
    return [to_frame(image) for image in video]


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the items, evenly spread, with both ends."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def write_png(path: Path, frames: Frames, fps: float) -> None:
    """The last frame."""
    from PIL import Image

    Image.fromarray(frames[-1]).save(path)


def write_strip(path: Path, frames: Frames, fps: float, most: int | None = None) -> None:
    """The frames side by side, in the size of the last one: all of them, or `most` that are evenly spread."""
    shown = list(frames) if most is None else evenly(frames, most)
    write_png(path, [np.concatenate(_same_size(shown), axis=1)], fps)


def write_gif(path: Path, frames: Frames, fps: float, rest: float = 0.0) -> None:
    """An endless animation that rests so many seconds on its last frame."""
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in _same_size(frames)]
    durations = _durations(len(pictures), fps, rest, unit=10)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def write_webp(path: Path, frames: Frames, fps: float, rest: float = 0.0) -> None:
    """An endless animation that rests so many seconds on its last frame; exact up to 256 pixels a side.

    In the file, a frame that equals the one before is that one, shown for longer; frames that are all the
    same make a still picture.

    Raises:
        ConfigError: If Pillow was built without animated WebP.
    """
    import PIL
    from PIL import Image, features

    if not features.check("webp_anim"):
        raise ConfigError(
            f"Pillow must be built with animated WebP to write clips, got {PIL.__version__} without; try "
            "`pip install --force-reinstall pillow`."
        )
    pictures = [Image.fromarray(frame) for frame in _same_size(frames)]
    exact = max(pictures[0].size) <= LOSSLESS
    # The quickest method: the others take twice the time for a twentieth of a file.
    how: dict[str, Any] = {"lossless": True} if exact else {"quality": QUALITY, "method": 0}
    durations = _durations(len(pictures), fps, rest)
    pictures[0].save(
        path, "WEBP", save_all=True, append_images=pictures[1:], duration=durations, loop=0, **how
    )


def makes_mp4() -> bool:
    """Whether `write_mp4` finds what it needs."""
    return importlib.util.find_spec("moviepy") is not None


def write_mp4(path: Path, frames: Frames, fps: float) -> None:
    """A clip in H.264, by moviepy.

    Raises:
        MissingExtra: If moviepy is not installed.
    """
    try:
        from moviepy import ImageSequenceClip
    except ImportError as error:
        raise MissingExtra("moviepy", "video") from error
    frames = _same_size(frames)
    # The codec halves the colour planes, so both sides must be even.
    odd = [(0, side % 2) for side in frames[0].shape[:2]]
    even = [np.pad(frame, [*odd, (0, 0)], mode="edge") for frame in frames]
    clip = ImageSequenceClip(even, fps=fps)
    try:
        clip.write_videofile(str(path), codec="libx264", audio=False, logger=None)
    finally:
        clip.close()


def _durations(count: int, fps: float, rest: float, unit: int = 1) -> list[int]:
    """How long each frame is shown, in milliseconds, in whole units; their sum does not drift."""
    ends = [unit * round(1000 * i / fps / unit) for i in range(count + 1)]
    shown = [max(unit, end - begin) for begin, end in pairwise(ends)]
    return [*shown[:-1], shown[-1] + round(1000 * rest)]


def _same_size(frames: Frames) -> list[np.ndarray]:
    from PIL import Image

    height, width = frames[-1].shape[:2]
    return [
        frame
        if frame.shape[:2] == (height, width)
        else np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))
        for frame in frames
    ]
