"""Pictures and clips as files: frames are uint8 `[H, W, 3]` arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from unirl_env.errors import ContractError, MissingExtra

Frames = Sequence[np.ndarray]


def to_frame(image: Tensor) -> np.ndarray:
    """`[3, H, W]` in [0, 1] as uint8 `[H, W, 3]`, rounded; what is not finite becomes black.

    Raises:
        ContractError: If the picture has another shape.
    """
    if image.ndim != 3 or image.shape[0] != 3:
        raise ContractError(f"A picture must be [3, H, W], got shape {list(image.shape)}.")
    image = image.detach().float().cpu().nan_to_num(0.0, 0.0, 0.0).clamp(0, 1)
    return (image * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)


def write_png(path: Path, frames: Frames, fps: float) -> None:
    """The last frame."""
    from PIL import Image

    Image.fromarray(frames[-1]).save(path)


def write_strip(path: Path, frames: Frames, fps: float) -> None:
    """All frames side by side, in the size of the last one."""
    write_png(path, [np.concatenate(_same_size(frames), axis=1)], fps)


def write_gif(path: Path, frames: Frames, fps: float) -> None:
    """An endless animation that rests a second on its last frame."""
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in _same_size(frames)]
    durations = [round(1000 / fps)] * (len(pictures) - 1) + [round(1000 / fps) + 1000]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0)


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


def _same_size(frames: Frames) -> list[np.ndarray]:
    from PIL import Image

    height, width = frames[-1].shape[:2]
    return [
        frame
        if frame.shape[:2] == (height, width)
        else np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))
        for frame in frames
    ]


WRITERS: dict[str, tuple[str, Callable[[Path, Frames, float], None]]] = {
    "png": (".png", write_png),
    "strip": (".png", write_strip),
    "gif": (".gif", write_gif),
    "mp4": (".mp4", write_mp4),
}
