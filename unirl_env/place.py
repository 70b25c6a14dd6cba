"""Where a run may go: its name and folder are tried before anything is loaded."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from unirl_env.config import RunConfig
from unirl_env.errors import ConfigError

__all__ = ["check_place"]

LONGEST = 240
"""Bytes of a run's name: file systems take 255, and a second run of the name adds a number."""


def check_place(cfg: RunConfig) -> None:
    """Refuse a name that is none of a folder, and a folder that cannot be written.

    Raises:
        ConfigError: Naming the setting, its value and the cause.
    """
    _check_name(cfg.name)
    folder = cfg.logging.folder
    if not folder or folder != folder.strip() or not folder.isprintable():
        raise ConfigError(
            f"`logging.folder` must be a path without blanks at its ends and without control characters, got "
            f"{folder!r}; try `logging.folder=runs`."
        )
    _try(Path(folder).expanduser(), cfg.name)


def _check_name(name: str) -> None:
    said = f"`name` must be the name of a folder, got {name!r:.120}"
    if not name.strip() or name.startswith((".", "~")) or set(name) & set("/\\") or not name.isprintable():
        raise ConfigError(f"{said}; try `name=my_run`.")
    if name != name.strip():
        raise ConfigError(f"{said}, with blanks at its ends; try `name={name.strip()}`.")
    length = len(os.fsencode(name))
    if length > LONGEST:
        raise ConfigError(f"{said}, of {length} bytes where at most {LONGEST} fit; try a shorter one.")


def _try(root: Path, name: str) -> None:
    """Write a trace where the run is to go, and take it away again."""
    try:
        place = next(path for path in (root / name, root, *root.absolute().parents) if path.exists())
        if not place.is_dir():
            raise NotADirectoryError(20, "it is a file", str(place))
        trace = tempfile.mkdtemp(prefix=".", dir=place)
        try:
            if place != root / name:
                # What is missing may be too long, or lie where folders cannot be made.
                Path(trace, root.name, name).mkdir(parents=True)
        finally:
            for path in (Path(trace, root.name, name), Path(trace, root.name), Path(trace)):
                with suppress(OSError):
                    path.rmdir()
    except OSError as error:
        cause = error.strerror or str(error)
        raise ConfigError(
            f"`logging.folder` must be a folder that can be written, got {str(root)!r}: {cause}"
            f"{f' ({error.filename})' if error.filename else ''}; try `logging.folder=` another one."
        ) from error
