"""Where a picture is: a path on this machine or a `data:` URI, and its bytes within bounds."""

from __future__ import annotations

import base64
import binascii
import os
from typing import Any

from unirl_env.errors import PromptError
from unirl_env.media.files import read_regular, require_regular

__all__ = ["MAX_BYTES", "bytes_of", "is_uri", "name_of", "path_of", "state_of"]

MAX_BYTES = 400_000_000
"""Of a file, before it is read: about what 64 million pixels take with three colours of 16 bits."""
REMOTE = ("http://", "https://", "ftp://", "s3://", "gs://", "hf://")
LONGEST_NAME = 200
"""Letters of a path in a message."""


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
