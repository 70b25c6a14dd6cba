"""How often a paid endpoint may be asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from unirl_env.arguments.values import require_number

__all__ = ["RateLimit"]

MINUTE = 60.0


class RateLimit:
    """Requests and tokens of a minute, spread evenly over it.

    A bucket that holds one request: the next may go once the last one has been paid off at the given rate.
    So no minute, wherever it begins, has more than its number. One object limits one process; several that
    share an account must share its limit out among them.

    Args:
        requests_per_minute: None for no limit.
        tokens_per_minute: None for no limit; each request says how many it may need at most, and gives back
            what it did not need.
        clock: Seconds that only grow.

    Raises:
        ConfigError: If a limit is not positive.
    """

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        for name, number in (
            ("requests_per_minute", requests_per_minute),
            ("tokens_per_minute", tokens_per_minute),
        ):
            if number is not None:
                require_number(name, number, 0, unit="or null for no limit")
        self._clock, self._lock = clock, threading.Lock()
        self._per_request = MINUTE / requests_per_minute if requests_per_minute else 0.0
        self._per_token = MINUTE / tokens_per_minute if tokens_per_minute else 0.0
        self._requests_free = self._tokens_free = self._held = clock()

    def reserve(self, tokens: float = 0, most: float = float("inf")) -> float | None:
        """The seconds after which one request of `tokens` may go; its place is then taken.

        Returns:
            None, with no place taken, if these are more than `most`.
        """
        with self._lock:
            now = self._clock()
            start = max(now, self._held)
            start = max(start, self._requests_free) if self._per_request else start
            start = max(start, self._tokens_free) if self._per_token else start
            if start - now > most:
                return None
            self._requests_free = start + self._per_request
            self._tokens_free = start + tokens * self._per_token
            return start - now

    def give_back(self, tokens: float) -> None:
        """Return tokens that a request reserved and did not use; a negative number takes more."""
        with self._lock:
            self._tokens_free -= tokens * self._per_token

    def hold(self, seconds: float) -> None:
        """Let nothing go for so long, because the server asked for it."""
        with self._lock:
            self._held = max(self._held, self._clock() + seconds)
