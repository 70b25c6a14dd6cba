"""A circuit breaker: whoever fails again and again is left alone for a while, then tried with one request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ["CircuitBreaker"]


class CircuitBreaker:
    """Says whether a request may go to a replica.

    Closed: every request may. Open, after `failures` failures in a row: none may. Half-open, `cooldown`
    seconds later: one may, the probe; its success closes the breaker, its failure opens it again. Threads may
    share it; whoever was let in must say how it went.

    Args:
        failures: So many in a row open it.
        cooldown: Seconds that it stays open.
        clock: Seconds from any beginning.
    """

    def __init__(
        self, failures: int = 5, cooldown: float = 10.0, clock: Callable[[], float] = time.monotonic
    ):
        self.failures = failures
        self.cooldown = cooldown
        self._clock = clock
        self._lock = threading.Lock()
        self._failed = 0
        self._opened: float | None = None
        self._probing = False

    @property
    def state(self) -> str:
        """`closed`, `open` or `half_open`."""
        with self._lock:
            return self._state()

    def enter(self) -> bool:
        """Whether a request may go now."""
        with self._lock:
            if self._state() == "half_open" and not self._probing:
                self._probing = True
                return True
            return self._opened is None

    def succeeded(self) -> None:
        """A request was answered: the replica lives."""
        with self._lock:
            self._failed, self._opened, self._probing = 0, None, False

    def failed(self) -> bool:
        """A request failed.

        Returns:
            Whether it was a probe.
        """
        with self._lock:
            probe, self._probing = self._probing, False
            self._failed += 1
            # One that was sent before the breaker opened says nothing new, and prolongs nothing.
            if probe or (self._opened is None and self._failed >= self.failures):
                self._opened = self._clock()
            return probe

    def wait(self) -> float:
        """Seconds until the next request may go, if nothing is said until then; 0 if it may now."""
        with self._lock:
            if self._opened is None or (self._state() == "half_open" and not self._probing):
                return 0.0
            # While a probe is out, its end decides.
            return self.cooldown if self._probing else self._opened + self.cooldown - self._clock()

    def _state(self) -> str:
        if self._opened is None:
            return "closed"
        return "half_open" if self._clock() - self._opened >= self.cooldown else "open"
