"""Answers that were paid for, kept on the disk: asking the same again costs nothing.

A file of SQLite that several processes of one machine may share. It is a help and no part of the score:
whatever is wrong with it, a warning says so once, and scoring goes on without it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from unirl_env.media.pixels import in_8_bits

logger = logging.getLogger(__name__)

BUSY_SECONDS = 5.0
"""How long another process may keep the file to itself."""
AT_ONCE = 500
"""Keys of one query; SQLite takes 999 or more."""
BROKEN = (sqlite3.Error, OSError)


def answer_key(**decides: Any) -> str:
    """A digest of everything that decides an answer, given as JSON."""
    words = json.dumps(decides, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(words.encode()).hexdigest()


class AnswerCache:
    """Key to JSON value.

    Args:
        path: The file; made with its folder if it is not there. None keeps nothing. It must lie on this
            machine: SQLite's shared memory does not reach over a network.
    """

    def __init__(self, path: str | os.PathLike[str] | None):
        self.path = None if path is None else Path(path).expanduser()
        self._lock = threading.Lock()
        self._readable = self._writable = self.path is not None
        self._connection: sqlite3.Connection | None = None
        self._process = 0

    def find(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those `keys` that are known."""
        wanted = list(dict.fromkeys(keys))
        if not self._readable or not wanted:
            return {}
        found: dict[str, Any] = {}
        with self._lock:
            try:
                for start in range(0, len(wanted), AT_ONCE):
                    block = wanted[start : start + AT_ONCE]
                    marks = ",".join("?" * len(block))
                    rows = self._open().execute(
                        f"SELECT key, value FROM answers WHERE key IN ({marks})", block
                    )
                    found.update((key, json.loads(value)) for key, value in rows)
            except (*BROKEN, ValueError) as error:
                self._give_up(error)
                return {}
        return found

    def keep(self, key: str, value: Any) -> None:
        """Remember `value`; the first one stays."""
        if not self._writable:
            return
        with self._lock:
            try:
                with self._open() as connection:
                    connection.execute(
                        "INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, json.dumps(value))
                    )
            except BROKEN as error:
                self._give_up(error, writing=True)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        # A connection must not be used by a process that was forked from the one that opened it.
        if self._connection is None or self._process != os.getpid():
            assert self.path is not None
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, check_same_thread=False)
            try:
                # Readers and one writer at a time without waiting for one another.
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=NORMAL")
                with connection:
                    connection.execute(
                        "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID"
                    )
            except BaseException:
                connection.close()
                raise
            self._connection, self._process = connection, os.getpid()
        return self._connection

    def _give_up(self, error: Exception, writing: bool = False) -> None:
        """Say once what is wrong. A file that cannot be written may still be read."""
        if self._writable:
            logger.warning(
                "The cache of answers %s cannot be used, got %s: %s; scores are not lost, but %s. Try a file "
                "that can be written, on a disk of this machine with space left, or remove a damaged one.",
                self.path,
                type(error).__name__,
                error,
                "no new ones are kept" if writing else "all of them are asked for",
            )
        self._writable = False
        self._readable = self._readable and writing and self._connection is not None


def picture_key(picture: Tensor) -> str:
    """A digest of the pixels that a judge sees, whatever library writes the file."""
    levels = in_8_bits(picture).contiguous()
    return hashlib.sha256(str(tuple(levels.shape)).encode() + levels.numpy().tobytes()).hexdigest()
