"""Pictures from wherever they are: a file, a data URI, or a tensor."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import struct
import warnings
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unirl_env.errors import PromptError

__all__ = ["as_source", "in_8_bits", "load_picture", "picture_digest", "png_bytes", "png_uri", "to_pil"]

MAX_PIXELS = 64_000_000
REMOTE = ("http://", "https://", "ftp://", "s3://", "gs://", "hf://")
WHITE = (255, 255, 255, 255)
BROKEN = (OSError, ValueError, SyntaxError, EOFError, struct.error)
"""What Pillow raises on files that are no pictures, or not whole."""


def load_picture(source: Any) -> Tensor:
    """A picture as `[3, H, W]` float32 in [0, 1].

    Files are turned upright by their EXIF tag, transparency becomes white, and of an animation the first
    frame is taken.

    Args:
        source: A path, a `data:` URI in base64, a PIL picture, or a tensor `[3, H, W]` in [0, 1].

    Raises:
        PromptError: If it is none of these, cannot be read, or has more than 64 million pixels.
    """
    if isinstance(source, Tensor):
        return _checked_tensor(source)
    if _is_pil(source):
        return _decoded(source, "a PIL picture")
    from PIL import Image

    name = _name(source)
    try:
        with warnings.catch_warnings():
            # Pillow warns of what is refused below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(_bytes(source))) as picture:
                return _decoded(picture, name)
    except Image.DecompressionBombError as error:
        raise _too_large(name, str(error)) from error
    except PromptError:
        raise
    except BROKEN as error:
        raise PromptError(f"A picture must be of a format that Pillow reads, got {name}; try PNG.") from error


def picture_digest(source: Any) -> str:
    """A digest of a picture's content: of a file's bytes, not of the place where it lies.

    Raises:
        PromptError: If `source` is no picture, or a file that cannot be read.
    """
    if isinstance(source, Tensor):
        array = source.detach().cpu().contiguous()
        head = f"{array.dtype}{tuple(array.shape)}"
        return hashlib.sha256(head.encode() + array.view(torch.uint8).numpy().tobytes()).hexdigest()
    if _is_pil(source):
        return picture_digest(load_picture(source))
    if isinstance(source, str) and source.startswith("data:"):
        return hashlib.sha256(_bytes(source)).hexdigest()
    path = _path(source)
    try:
        state = os.stat(path)
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from error
    return _file_digest(path, state.st_size, state.st_mtime_ns)


def as_source(source: Any) -> Any:
    """`source` as a `Prompt` keeps it: a text or a tensor.

    Raises:
        PromptError: If it is no picture.
    """
    if _is_pil(source):
        return load_picture(source)
    if isinstance(source, Tensor) or (isinstance(source, str) and source.startswith("data:")):
        return source
    return _path(source)


def in_8_bits(pixels: Tensor) -> Tensor:
    """Finite pixels in [0, 1], of any shape, as uint8 on the CPU, rounded."""
    return pixels.detach().float().cpu().clamp(0, 1).mul(255).round().to(torch.uint8)


def to_pil(picture: Tensor) -> Any:
    """A finite picture `[3, H, W]` in [0, 1] as a `PIL.Image` of 8 bits."""
    from PIL import Image

    return Image.fromarray(in_8_bits(picture).permute(1, 2, 0).contiguous().numpy())


def png_bytes(picture: Tensor, compress_level: int = 6) -> bytes:
    """A finite picture `[3, H, W]` in [0, 1] as a PNG of 8 bits; levels from 1, which is fast, to 9."""
    stream = io.BytesIO()
    to_pil(picture).save(stream, "PNG", compress_level=compress_level)
    return stream.getvalue()


def png_uri(picture: Tensor) -> str:
    """A finite picture `[3, H, W]` in [0, 1] as a `data:` URI of its PNG."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(picture)).decode()


@lru_cache(maxsize=65536)
def _file_digest(path: str, size: int, changed: int) -> str:
    """By size and time, so that a file is read again when it has changed."""
    return hashlib.sha256(_bytes(path)).hexdigest()


def _is_pil(source: Any) -> bool:
    return hasattr(source, "getexif") and hasattr(source, "convert")


def _path(source: Any) -> str:
    if not isinstance(source, (str, os.PathLike)) or not str(source):
        raise PromptError(
            "A picture must be a path, a data URI or a tensor [3, H, W] in [0, 1], got "
            f"{type(source).__name__}; try the path of a file."
        )
    if str(source).lower().startswith(REMOTE):
        raise PromptError(
            f"A picture must be on this machine, got {_name(source)}; try to download it and give its path, "
            "so that a run does not change when a server does."
        )
    return os.fspath(source)


def _bytes(source: Any) -> bytes:
    if isinstance(source, str) and source.startswith("data:"):
        head, comma, body = source.partition(",")
        try:
            if not comma or not head.endswith(";base64"):
                raise ValueError("it does not begin with data:image/...;base64,")
            return base64.b64decode(body, validate=True)
        except (ValueError, binascii.Error) as error:
            raise _unreadable(source, error) from error
    try:
        with open(_path(source), "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from error


def _decoded(picture: Any, name: str) -> Tensor:
    from PIL import Image, ImageOps

    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise _too_large(name, f"{width} x {height}")
    try:
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith(("I", "F")):
            # Sixteen bits of grey, which Pillow would cut off at 255 instead of scaling.
            grey = np.asarray(picture, dtype=np.float32)
            grey = grey / (65535.0 if picture.mode.startswith("I") else 1.0)
            return torch.from_numpy(grey).clamp(0, 1).expand(3, *grey.shape).contiguous()
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, WHITE), picture)
        pixels = np.array(picture.convert("RGB"))
    except BROKEN as error:
        raise PromptError(f"A picture must be whole, got {error} for {name}; try another copy.") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div_(255).contiguous()


def _checked_tensor(picture: Tensor) -> Tensor:
    if picture.ndim != 3 or picture.shape[0] != 3 or not picture.is_floating_point() or not picture.numel():
        raise PromptError(
            "A picture must be a floating-point tensor [3, H, W], got "
            f"{picture.dtype} {list(picture.shape)}; try `picture.float() / 255` for bytes."
        )
    if picture[0].numel() > MAX_PIXELS:
        raise _too_large("a tensor", f"{picture.shape[2]} x {picture.shape[1]}")
    picture = picture.detach().float().cpu()
    low, high = (float(bound) for bound in torch.aminmax(picture))
    if not (low >= 0 and high <= 1):
        raise PromptError(f"A picture must lie in [0, 1], got values from {low:g} to {high:g}.")
    return picture


def _too_large(name: str, size: str) -> PromptError:
    return PromptError(
        f"A picture must have at most {MAX_PIXELS} pixels, got {size} for {name}; try a smaller copy."
    )


def _unreadable(source: Any, error: Exception) -> PromptError:
    said = getattr(error, "strerror", None) or error
    return PromptError(
        f"A picture must be a file that can be read, or a data URI in base64, got {said} for {_name(source)}."
    )


def _name(source: Any) -> str:
    shown = str(source)
    return repr(shown if len(shown) <= 80 else f"{shown[:60]}...")
