"""The time that a batch of requests has, and what becomes of those that fail."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from unirl_env.rewards.heard import note

__all__ = ["CallFailed", "Turn", "complain"]

logger = logging.getLogger(__name__)


class CallFailed(Exception):
    """One request has come to nothing, and with it the scores that hang on it.

    Attributes:
        kind: A few words, by which failures are counted.
        settings: Whether a wrong setting would look like this, too.
    """

    def __init__(self, kind: str, detail: str = "", *, settings: bool = False):
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind, self.settings = kind, settings


class Turn:
    """The time that a batch of requests has; it can be cut short."""

    def __init__(self, seconds: float, pause: Callable[[float], None] | None = None):
        self._ends, self._over, self._pause = time.monotonic() + seconds, threading.Event(), pause

    def left(self) -> float:
        """Seconds; 0 once it is over."""
        return 0.0 if self._over.is_set() else max(0.0, self._ends - time.monotonic())

    def stop(self) -> None:
        """Let nothing begin any more."""
        self._over.set()

    def sleep(self, seconds: float) -> None:
        """Wait.

        Raises:
            CallFailed: If the turn is over before.
        """
        if self._pause is not None:
            self._pause(seconds)
        elif seconds > 0:
            self._over.wait(min(seconds, self.left()))
        if not self.left():
            raise CallFailed("no time left")


def complain(name: str, failures: Sequence[CallFailed], count: int) -> None:
    """One warning of what `name` could not score among `count` samples: `failures`, one per sample."""
    if failures:
        kinds = Counter(failure.kind for failure in failures)
        note(f"{name}: {failures[0]}")
        logger.warning(
            "Scorer `%s` failed on %d of %d samples, which count as invalid (%s); one of them: %s",
            name,
            len(failures),
            count,
            ", ".join(f"{number} x {kind}" for kind, number in kinds.most_common()),
            failures[0],
        )
