"""Requests by their ids: one attempt does the work, and the others are told what came of it."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any


class OtherBody(Exception):
    """An id that was used before, for something else."""


class Remembered:
    """What became of the latest requests.

    Args:
        count: Finished requests to keep.
        seconds: How long to keep them.
        clock: Seconds from any beginning.
    """

    def __init__(self, count: int, seconds: float, clock: Callable[[], float] = time.monotonic):
        self.count = count
        self.seconds = seconds
        self._clock = clock
        self._lock = threading.RLock()  # a future that is done calls back at once, in the same thread
        self._under_way: dict[str, _Entry] = {}
        self._finished: OrderedDict[str, _Entry] = OrderedDict()

    def __len__(self) -> int:
        with self._lock:
            return len(self._under_way) + len(self._finished)

    def ask(self, id: str, digest: bytes, start: Callable[[], Future]) -> tuple[Future, bool]:
        """The work on a request: begun by `start`, or already known.

        Args:
            id: The request's name for itself; the empty one is never remembered.
            digest: Of what is asked.
            start: Begins the work; what it raises is raised here, and nothing is remembered then.

        Returns:
            What the work gives, and whether an earlier attempt began it.

        Raises:
            OtherBody: If the id stands for another digest.
        """
        if not id:
            return start(), False
        with self._lock:
            self._forget()
            known = self._under_way.get(id) or self._finished.get(id)
            if known is not None:
                if known.digest != digest:
                    raise OtherBody
                return known.future, True
            future = start()
            self._under_way[id] = _Entry(digest, future)
            future.add_done_callback(lambda done: self._note(id, done))
            return future, False

    def _note(self, id: str, done: Future) -> None:
        with self._lock:
            entry = self._under_way.pop(id)
            if done.exception() is not None:
                return  # a mistake of ours may not happen again
            # A future of its own, as the old one holds on to all who waited for it.
            kept: Future[Any] = Future()
            kept.set_result(done.result())
            self._finished[id] = _Entry(entry.digest, kept, self._clock())
            self._forget()

    def _forget(self) -> None:
        now = self._clock()
        while self._finished:
            oldest = next(iter(self._finished.values()))
            if len(self._finished) <= self.count and now - oldest.finished <= self.seconds:
                return
            self._finished.popitem(last=False)


@dataclass
class _Entry:
    digest: bytes
    future: Future
    finished: float = 0.0
