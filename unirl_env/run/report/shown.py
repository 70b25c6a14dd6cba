"""Pictures and clips as HTML, small enough for a page that can be sent and loads nothing."""

from __future__ import annotations

import base64
import io
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path

from PIL import Image

from unirl_env.run.record.samples import clip_paths

LARGEST = 320
"""Side in pixels from which pictures are scaled down: a page must stay one that can be sent."""
SIDE, FILM = 128, 160
"""Of clips, half of what pictures have and at most this; and what is taken in a film's narrow columns."""
PIXELATED = 128
"""Side in pixels up to which the pixels of a picture or a clip should show."""
FRAMES = 16
"""Frames of a clip at most: with its strip it then weighs like three pictures."""
OF_CLIPS = 16
"""Prompts whose clips stand on a page at most."""
MOMENTS, GAP = 5, 2
"""Frames of the strip that stands for a clip where nothing moves, and the pixels between them."""
TINY, FINE, COARSE = 64, 90, 50
"""Side in pixels up to which clips are of fine quality (lossless, they would weigh five times as much)."""


def seen(pictures: Sequence[Path]) -> str:
    """The pictures that belong to a request, or nothing."""
    return f'<div class="seen">{"".join(map(shown, pictures))}</div>' if pictures else ""


def shown(path: Path, largest: int = LARGEST) -> str:
    """A picture as HTML, scaled down from `largest` pixels a side on; a clip likewise, from half of it on.

    A clip plays for ever. On paper, and for people who want nothing to move, a strip of its frames takes its
    place, from top to bottom.
    """
    if is_clip(path):
        clip, strip, small = clip_uris(path, min(largest // 2, SIDE))
        kind = " pixels" if small else ""
        # What is not displayed is not loaded lazily either, and paper does not wait for it.
        return (
            f'<img class="clip{kind}" src="{clip}" alt="" loading="lazy">'
            f'<img class="still{kind}" src="{strip}" alt="">'
        )
    uri, small = data_uri(path, largest)
    kind = ' class="pixels"' if small else ""
    return f'<img{kind} src="{uri}" alt="" loading="lazy">'


def is_clip(path: Path) -> bool:
    """Whether a sample's file is a clip."""
    return path.suffix == ".webp"


def have_clips(folders: Sequence[Path]) -> bool:
    """Whether there are clips among the samples in these folders."""
    return any(clip_paths(folder) for folder in folders)


def data_uri(path: Path, largest: int = LARGEST) -> tuple[str, bool]:
    """A picture as text that fits into a page, and whether it is so small that its pixels should show."""
    with Image.open(path) as picture:
        small = max(picture.size) <= PIXELATED
        stream = io.BytesIO()
        if small:
            picture.save(stream, "PNG", optimize=True)
        else:
            picture.thumbnail((largest, largest), Image.Resampling.LANCZOS)
            picture.convert("RGB").save(stream, "JPEG", quality=85)
    return _uri("png" if small else "jpeg", stream), small


def clip_uris(path: Path, largest: int = SIDE) -> tuple[str, str, bool]:
    """A clip as text that fits into a page: animated, as a strip, and whether its pixels should show.

    Args:
        path: An animated WebP.
        largest: Side in pixels from which it is scaled down.
    """
    frames, durations = _read(path)
    small = max(frames[0].size) <= min(PIXELATED, largest)
    strip = _strip([_scaled(frame, largest) for frame in _moments(frames, durations, MOMENTS)])
    if len(frames) > FRAMES:
        ends = [round(sum(durations) * k / FRAMES) for k in range(FRAMES + 1)]
        frames = _moments(frames, durations, FRAMES)
        durations = [end - begin for begin, end in pairwise(ends)]
    frames = [_scaled(frame, largest) for frame in frames]
    quality = FINE if max(frames[0].size) <= TINY else COARSE
    clip, still = io.BytesIO(), io.BytesIO()
    frames[0].save(
        clip, "WEBP", save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=quality
    )
    strip.save(still, "WEBP", quality=quality)
    return _uri("webp", clip), _uri("webp", still), small


def _read(path: Path) -> tuple[list[Image.Image], list[int]]:
    """The frames of a clip, and how many milliseconds each is shown."""
    frames, durations = [], []
    with Image.open(path) as clip:
        for i in range(getattr(clip, "n_frames", 1)):
            clip.seek(i)
            frames.append(clip.convert("RGB"))
            durations.append(max(1, int(clip.info.get("duration") or 1)))
    return frames, durations


def _moments(frames: Sequence[Image.Image], durations: Sequence[int], count: int) -> list[Image.Image]:
    """What is seen at so many moments, evenly spread from the first frame to the last."""
    ends = list(accumulate(durations))
    moments = (ends[-1] * k / (count - 1) for k in range(count))
    return [frames[min(bisect_right(ends, moment), len(frames) - 1)] for moment in moments]


def _scaled(frame: Image.Image, largest: int) -> Image.Image:
    frame = frame.copy()
    frame.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    return frame


def _strip(frames: Sequence[Image.Image]) -> Image.Image:
    """Frames from top to bottom, with nothing between them that would clash with a page's colours."""
    width, height = frames[0].size
    strip = Image.new("RGBA", (width, len(frames) * (height + GAP) - GAP))
    for i, frame in enumerate(frames):
        strip.paste(frame, (0, i * (height + GAP)))
    return strip


def _uri(kind: str, stream: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
