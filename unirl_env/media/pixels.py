"""Pictures from wherever they are: a file on this machine, a data URI, or a tensor; read within bounds."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unirl_env.errors import PromptError
from unirl_env.media.files import read_regular, require_regular

MAX_BYTES = 400_000_000
"""Of a file, before it is read: about what 64 million pixels take with three colours of 16 bits."""
REMOTE = ("http://", "https://", "ftp://", "s3://", "gs://", "hf://")
LONGEST_NAME = 200
"""Letters of a path in a message."""
MAX_PIXELS = 64_000_000
WHITE = (255, 255, 255, 255)
WIDENED = {"L;2": 85, "L;4": 17}
"""What Pillow multiplies greys of few bits by, but not the one that a PNG calls transparent."""
BITS, PHOTOMETRIC = 258, 262
"""Tags of a TIFF."""
BROKEN = (OSError, ValueError, SyntaxError, EOFError, struct.error)
"""What Pillow raises on files that are no pictures, or not whole."""


def is_uri(source: Any) -> bool:
    """Whether the picture itself stands in `source`."""
    return isinstance(source, str) and source.startswith("data:")


def path_of(source: Any) -> str:
    """The path that `source` is; the file is not looked at.

    Raises:
        PromptError: If it is none, or on another machine.
    """
    if not isinstance(source, (str, os.PathLike)) or not str(source):
        raise PromptError(
            "A picture must be a path, a data URI or a tensor [3, H, W] in [0, 1], got "
            f"{type(source).__name__}; try the path of a file, or of an array [H, W, 3] of bytes "
            "`torch.from_numpy(array).permute(2, 0, 1) / 255`."
        )
    if str(source).lower().startswith(REMOTE):
        raise PromptError(
            f"A picture must be on this machine, got {name_of(source)}; try to download it and give its "
            "path, so that a run does not change when a server does."
        )
    return os.fspath(source)


def bytes_of(source: Any) -> bytes:
    """What stands in a regular file or a `data:` URI in base64; what is too large is not read.

    Raises:
        PromptError: If it cannot be read, is no regular file, or has more than `MAX_BYTES`.
    """
    try:
        if not is_uri(source):
            return read_regular(path_of(source), MAX_BYTES)
        head, comma, body = source.partition(",")
        if not comma or not head.endswith(";base64"):
            raise ValueError("it does not begin with data:image/...;base64,")
        if len(body) // 4 * 3 > MAX_BYTES:
            raise ValueError(f"{len(body)} characters of it, more than {MAX_BYTES} bytes")
        return base64.b64decode(body, validate=True)
    except PromptError:
        raise
    except (OSError, ValueError, binascii.Error) as error:
        raise _unreadable(source, error) from error


def state_of(path: str) -> tuple[int, int]:
    """Size and time of the last change of a regular file, in bytes and nanoseconds.

    Raises:
        PromptError: If there is none.
    """
    try:
        state = require_regular(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return state.st_size, state.st_mtime_ns


def name_of(source: Any) -> str:
    """What a message calls a source."""
    shown = str(source)
    if len(shown) <= LONGEST_NAME:
        return repr(shown)
    # A file is known by the end of its path, a data URI by its beginning.
    return repr(f"{shown[:60]}..." if shown.startswith("data:") else f"...{shown[-LONGEST_NAME:]}")


def _unreadable(source: Any, error: Exception) -> PromptError:
    said = getattr(error, "strerror", None) or error
    return PromptError(
        f"A picture must be a file that can be read, or a data URI in base64, got {said} for "
        f"{name_of(source)}."
    )


def load_picture(source: Any) -> Tensor:
    """A picture as `[3, H, W]` float32 in [0, 1].

    Files are turned upright by their EXIF tag, transparency becomes white, and of an animation the first
    frame is taken. Greys of 12 and 16 bits are scaled, floating greys must lie in [0, 1]; whole numbers of
    32 bits, whose white nobody knows, are refused, as is all that would have to be cut off.

    Args:
        source: A path, a `data:` URI in base64, a PIL picture, or a tensor `[3, H, W]` in [0, 1].

    Raises:
        PromptError: If it is none of these, is no regular file, has more than 400 million bytes (told before
            it is read), or no pixels or more than 64 million (told before they are decoded).
    """
    if isinstance(source, Tensor):
        return _checked_tensor(source)
    if _is_pil(source):
        return _decoded(source, "a PIL picture")
    name = name_of(source)
    with _opened(bytes_of(source), name) as picture:
        return _decoded(picture, name)


def check_picture(source: Any) -> None:
    """Look whether a picture can be one, as far as its head tells: nothing is decoded.

    Raises:
        PromptError: As `load_picture`.
    """
    if isinstance(source, Tensor):
        _checked_tensor(source)
    elif is_uri(source):
        with _opened(bytes_of(source), name_of(source)) as picture:
            _check_size(picture, name_of(source))
    elif not _is_pil(source):
        path = path_of(source)
        if fault := _examined(path, *state_of(path))[1]:
            raise PromptError(fault)


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
    if is_uri(source):
        return hashlib.sha256(bytes_of(source)).hexdigest()
    path = path_of(source)
    return _examined(path, *state_of(path))[0]


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
    if is_uri(source):
        return source
    return path_of(source)


def in_8_bits(pixels: Tensor) -> Tensor:
    """Finite pixels in [0, 1], of any shape, as uint8 on the CPU, rounded; uint8 stays as it is."""
    if pixels.dtype == torch.uint8:
        return pixels.detach().cpu()
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
def _examined(path: str, size: int, changed: int) -> tuple[str, str]:
    """A file's digest, and why it is no picture, if so; read again when its size or time has changed."""
    data, fault = bytes_of(path), ""
    try:
        with _opened(data, name_of(path)) as picture:
            _check_size(picture, name_of(path))
    except PromptError as error:
        fault = str(error)
    return hashlib.sha256(data).hexdigest(), fault


@contextmanager
def _opened(data: bytes, name: str) -> Iterator[Any]:
    """A picture as Pillow opens it, of which the head has been read; its failures are ours."""
    from PIL import Image

    try:
        with warnings.catch_warnings():  # Pillow warns of what is refused here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as picture:
                yield picture
    except Image.DecompressionBombError as error:
        raise _too_large(name, str(error)) from error
    except PromptError:
        raise
    except BROKEN as error:
        raise PromptError(f"A picture must be of a format that Pillow reads, got {name}; try PNG.") from error


def _is_pil(source: Any) -> bool:
    return hasattr(source, "getexif") and hasattr(source, "convert")


def _decoded(picture: Any, name: str) -> Tensor:
    from PIL import Image, ImageOps

    _check_size(picture, name)
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


def _check_size(picture: Any, name: str) -> None:
    """Hold what the head of a picture says of its size against the bounds, before anything is decoded."""
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise _too_large(name, f"{width} x {height}")
    if not width * height:
        raise PromptError(f"A picture must have pixels, got {width} x {height} for {name}.")
    if picture.format == "EPS":
        raise PromptError(
            f"A picture must be of pixels, got an EPS for {name}, for which a program would be run; try PNG."
        )


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
