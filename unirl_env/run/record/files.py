"""Files of a run: written whole or not at all; and which names in its folder are the library's own.

Whatever has another name belongs to a person: it is never deleted, renamed, or read as something of ours.
Links are followed where something is read; where something is removed, they go, and what they point to stays.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from unirl_env.errors import ConfigError


def iteration_of(name: str) -> int | None:
    """The iteration that a name of ours stands for: six digits, and more where they are needed; else None."""
    if not re.fullmatch(r"[0-9]{6,18}", name):
        return None
    return int(name) if name == f"{int(name):06d}" else None


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """What is named after an iteration in `folder`, by its number; folders and links only."""
    if not folder.is_dir():
        return []
    found = [(iteration_of(path.name), path) for path in folder.iterdir()]
    return sorted((n, path) for n, path in found if n is not None and (path.is_dir() or path.is_symlink()))


def is_dangling(path: Path) -> bool:
    """Whether this is a link to nowhere: often to a disk that is not there today."""
    return path.is_symlink() and not path.exists()


def free_place(path: Path) -> Path:
    """`path`, or the first of `path-2`, `path-3`, ... where nothing lies, not even a dangling link."""
    candidate, number = path, 1
    while os.path.lexists(candidate):
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def remove_files(folder: Path, pattern: str, inner: Iterable[tuple[str, str]] = ()) -> None:
    """Remove the files of `folder` whose whole names match, and then `folder` if nothing is left in it.

    Args:
        folder: A folder, a link to one (which goes, with its target left as it is), or nothing at all.
        pattern: A regular expression.
        inner: Folders inside, each with a pattern of its own, that are emptied in the same way before.
    """
    if folder.is_symlink():
        folder.unlink()
        return
    if not folder.is_dir():
        return
    for name, own in inner:
        remove_files(folder / name, own)
    for path in folder.iterdir():
        if re.fullmatch(pattern, path.name) and (path.is_file() or path.is_symlink()):
            path.unlink()
    try:
        folder.rmdir()
    except OSError:  # Somebody keeps something there.
        return


def locked(folder: Path, what: str) -> IO[str]:
    """Keep other processes from writing in a folder until the returned file is closed.

    Args:
        folder: It must be there.
        what: What lies in it, for the error: `run`.

    Raises:
        ConfigError: If another process is at work there.
    """
    stream = (folder / ".lock").open("a", encoding="utf-8")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        stream.close()
        raise ConfigError(
            f"A {what}'s folder must belong to one process, got {folder}, where another one is at work; try "
            "another `name=`."
        ) from error
    return stream


def replace_text(path: Path, text: str) -> None:
    """Make `text` the contents of `path` in one step: a full disk or a kill leaves the old ones."""
    draft = path.with_name(f".{path.name}")
    with draft.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(path)
