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
WIDENED = {"L;2": 85, "L;4": 17}
"""What Pillow multiplies greys of few bits by, but not the one that a PNG calls transparent."""
BITS, PHOTOMETRIC = 258, 262
"""Tags of a TIFF."""
BROKEN = (OSError, ValueError, SyntaxError, EOFError, struct.error)
"""What Pillow raises on files that are no pictures, or not whole."""


def load_picture(source: Any) -> Tensor:
    """A picture as `[3, H, W]` float32 in [0, 1].

    Files are turned upright by their EXIF tag, transparency becomes white, and of an animation the first
    frame is taken. Greys of 12 and 16 bits are scaled, floating greys must lie in [0, 1]; whole numbers of
    32 bits, whose white nobody knows, are refused, as is all that would have to be cut off.

    Args:
        source: A path, a `data:` URI in base64, a PIL picture, or a tensor `[3, H, W]` in [0, 1].

    Raises:
        PromptError: If it is none of these, cannot be read, or has no pixels or more than 64 million.
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
    if isinstance(source, Tensor):
        _checked_tensor(source)
        return source
    if isinstance(source, str) and source.startswith("data:"):
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
            f"{type(source).__name__}; try the path of a file, or of an array [H, W, 3] of bytes "
            "`torch.from_numpy(array).permute(2, 0, 1) / 255`."
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
    path = _path(source)
    try:
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from error


def _decoded(picture: Any, name: str) -> Tensor:
    from PIL import Image, ImageOps

    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise _too_large(name, f"{width} x {height}")
    if not width * height:
        raise PromptError(f"A picture must have pixels, got {width} x {height} for {name}.")
    try:
        if picture.mode.startswith(("I", "F")):
            return _deep_grey(picture, name)
        clear = _clear_level(picture, name)
        picture = ImageOps.exif_transpose(picture)
        if clear is not None:
            picture.info["transparency"] = clear
        if picture.has_transparency_data:
            picture = picture.convert("LA") if picture.mode == "La" else picture
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, WHITE), picture)
        pixels = np.array(picture.convert("RGB"))
    except PromptError:
        raise
    except BROKEN as error:
        raise PromptError(
            f"A picture must be whole and of colours that Pillow knows, got {error} for {name}; try another "
            "copy, or PNG."
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div_(255).contiguous()


def _deep_grey(picture: Any, name: str) -> Tensor:
    """Grey of more than 8 bits, which Pillow would cut off at 255 instead of scaling."""
    from PIL import ImageOps

    white, inverted = _white_of(picture, name)
    clear = picture.info.get("transparency")
    picture = ImageOps.exif_transpose(picture)
    levels = np.asarray(picture)
    grey = torch.from_numpy(levels.astype(np.float32)) / white
    _require_unit("A picture", grey, f" for {name}")
    grey = 1 - grey if inverted else grey
    if clear is not None:
        grey[torch.from_numpy(levels == clear)] = 1.0
    return grey.expand(3, *grey.shape).contiguous()


def _white_of(picture: Any, name: str) -> tuple[float, bool]:
    """The level that is white in a grey picture of more than 8 bits, and whether it is black instead."""
    kind, mode, white, inverted = picture.format, picture.mode, None, False
    if mode == "F" and kind in (None, "TIFF", "PPM") and picture.info.get("scale", 1) == 1:
        white = 1.0
    elif mode == "I" and kind in ("PNG", "PPM"):
        white = 65535.0  # as Pillow scales them
    elif mode.startswith("I;16") and kind in (None, "PNG", "TIFF", "JPEG2000"):
        white = 65535.0
    if kind == "TIFF" and white is not None:
        # Pillow leaves the levels as they are in the file, and what they mean in its tags.
        bits, meaning = picture.tag_v2.get(BITS, (16,)), picture.tag_v2.get(PHOTOMETRIC, 1)
        white = white if mode == "F" else 2.0 ** bits[0] - 1
        inverted = meaning == 0
    if white is None or (inverted and mode == "F"):
        raise PromptError(
            "A picture of one channel must be grey of at most 16 bits, or floats from 0 (black) to 1, got "
            f"mode {mode!r} of {kind or 'a picture in memory'} for {name}, whose white is not known; try to "
            "save it with 8 or 16 bits."
        )
    return white, inverted


def _clear_level(picture: Any, name: str) -> int | None:
    """The level of the transparent grey in a PNG of 2 or 4 bits, as Pillow widens all others."""
    raw = str(picture.tile[0][3]) if picture.format == "PNG" and getattr(picture, "tile", None) else ""
    clear = picture.info.get("transparency")
    if clear is not None and raw == "RGB;16B":
        raise PromptError(
            f"A picture must have 8 bits per colour where one of them is transparent, got 16 for {name}; try "
            "to save it with an alpha channel."
        )
    return clear * WIDENED[raw] if clear is not None and raw in WIDENED else None


def _checked_tensor(picture: Tensor) -> Tensor:
    if picture.ndim != 3 or picture.shape[0] != 3 or not picture.is_floating_point() or not picture.numel():
        raise PromptError(
            "A picture must be a floating-point tensor [3, H, W], got "
            f"{picture.dtype} {list(picture.shape)}; try {_remedy(picture)}."
        )
    if picture[0].numel() > MAX_PIXELS:
        raise _too_large("a tensor", f"{picture.shape[2]} x {picture.shape[1]}")
    picture = picture.detach().float().cpu()
    _require_unit("A picture", picture, "")
    return picture


def _remedy(picture: Tensor) -> str:
    """What makes a picture of a tensor that is none."""
    if picture.ndim == 3 and picture.shape[0] != 3 and picture.shape[2] == 3:
        return "`picture.permute(2, 0, 1)`"
    if picture.ndim == 3 and picture.shape[0] == 3 and not picture.is_floating_point():
        return "`picture.float() / 255` for 8 bits, or / 65535 for 16"
    return "one picture of three channels, `picture.expand(3, -1, -1)` for grey [1, H, W]"


def _require_unit(what: str, pixels: Tensor, of: str) -> None:
    """Refuse pixels beyond black and white, which would be cut off, and NaN, which would be either."""
    low, high = (float(bound) for bound in torch.aminmax(pixels))
    if not (low >= 0 and high <= 1):
        got = "NaN" if low != low else f"values from {low:g} to {high:g}"
        raise PromptError(f"{what} must lie in [0, 1], got {got}{of}; try to scale it to that.")


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
