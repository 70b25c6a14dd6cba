"""Reading files that settings and prompts name: regular ones, of bounded size, and nothing else.

A named pipe waits for a writer for ever, a device has no end, and what lies below `/proc` or `/dev` is the
state of this machine and of this process: none of them is a picture or a text that somebody meant.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

MACHINE = ("/proc", "/sys", "/dev")
SHARED_MEMORY = "/dev/shm"
KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class NotRegular(OSError):
    """What a path names is no regular file; `strerror` says what it is."""


class TooLarge(OSError):
    """A file has more bytes than may be read; `strerror` says how many."""


def require_regular(path: str | os.PathLike[str]) -> os.stat_result:
    """The state of a regular file, links followed; nothing is opened.

    Raises:
        NotRegular: If it is something else, or of the machine's own.
        OSError: If there is nothing, or it may not be looked at.
        ValueError: If no path can be like that.
    """
    state = os.stat(path)
    _require_kind(state, path)
    real = os.path.realpath(path)
    own = any(real == root or real.startswith(f"{root}/") for root in MACHINE)
    if own and not real.startswith(f"{SHARED_MEMORY}/"):
        raise NotRegular(0, f"a file of the system's own ({real})", os.fspath(path))
    return state


def read_regular(path: str | os.PathLike[str], most: int) -> bytes:
    """The bytes of a regular file.

    Args:
        path: Of the file, or of a link to one.
        most: Its most bytes; a larger one is not read at all.

    Raises:
        NotRegular: If it is something else.
        TooLarge: If it is larger.
        OSError: If it cannot be read.
        ValueError: If no path can be like that.
    """
    require_regular(path)
    # It may have become something else meanwhile; a pipe is then opened without waiting for its other end.
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    with open(number, "rb") as file:
        state = os.fstat(number)
        _require_kind(state, path)
        if state.st_size > most:
            raise TooLarge(0, f"{state.st_size} bytes, and at most {most} are read", os.fspath(path))
        data = file.read(most + 1)
    if len(data) > most:  # it has grown
        raise TooLarge(0, f"more than the {most} bytes that are read", os.fspath(path))
    return data


def _require_kind(state: os.stat_result, path: str | os.PathLike[str]) -> None:
    if not stat.S_ISREG(state.st_mode):
        kind = KINDS.get(stat.S_IFMT(state.st_mode), "no file")
        raise NotRegular(0, f"{kind} and no regular file", str(Path(path)))
