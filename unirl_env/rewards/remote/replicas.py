"""The places that can answer a request, whose turn it is, and who is left alone for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

GLANCE = 0.2
"""Seconds between looks at whether to give up."""


class CircuitBreaker:
    """Says whether a request may go to a replica: one that fails again and again is left alone for a while.

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


class NoReplica(Exception):
    """Every replica was left alone, and the one that was tried again failed again, as the message says."""


@dataclass(eq=False)
class Replica:
    """One place.

    Attributes:
        url: Where it is.
        breaker: Whether it may be asked.
        rests_until: When it wants to be asked again, by the clock of `Replicas`.
    """

    url: str
    breaker: CircuitBreaker
    rests_until: float = 0.0


class Replicas:
    """Several places that give the same answers, taken in turn.

    A place that failed again and again is left alone for `cooldown` seconds, and one that asked for a rest,
    as long as it asked. Where no place is left, `take` waits for the first. Threads may share it; whoever
    takes a replica must give it back by `answered` or `failed`.

    Args:
        urls: The places.
        failures: So many in a row, and a place is left alone.
        cooldown: For so many seconds.
        clock: Seconds from any beginning.
    """

    def __init__(
        self,
        urls: Sequence[str],
        failures: int,
        cooldown: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.all = tuple(Replica(url, CircuitBreaker(failures, cooldown, clock)) for url in urls)
        self._clock = clock
        self._changed = threading.Condition()
        self._turn = 0
        self._lost_probes = 0
        self._last_cause = ""

    def take(
        self, after: Replica | None = None, given_up: Callable[[], bool] = lambda: False
    ) -> Replica | None:
        """The replica for the next attempt.

        Args:
            after: Where the attempt before failed: another one is better, and a sound one best.
            given_up: Asked while waiting; where it is true, nothing is taken.

        Raises:
            NoReplica: If all were left alone and, while this waited, one that was tried again failed.
        """
        with self._changed:
            lost = self._lost_probes
            while not given_up():
                if found := self._free(after):
                    return found
                if self._lost_probes > lost:
                    raise NoReplica(self._last_cause)
                self._changed.wait(min(self._soonest(), GLANCE))
            return None

    def answered(self, replica: Replica, rest: float = 0.0) -> None:
        """It lives; `rest` is for how many seconds it wants to be left alone."""
        with self._changed:
            replica.breaker.succeeded()
            self._rest(replica, rest)

    def failed(self, replica: Replica, rest: float = 0.0, cause: str = "") -> None:
        """It gave no answer that can be used."""
        with self._changed:
            self._last_cause = cause
            self._lost_probes += replica.breaker.failed()
            self._rest(replica, rest)

    def _rest(self, replica: Replica, seconds: float) -> None:
        if seconds > 0:
            replica.rests_until = max(replica.rests_until, self._clock() + seconds)
        self._changed.notify_all()

    def _free(self, after: Replica | None) -> Replica | None:
        count = len(self.all)
        order = [(self._turn + i) % count for i in range(count)]
        if after is not None:
            order.sort(key=lambda i: (self.all[i] is after, self.all[i].breaker.state != "closed"))
        for i in order:
            if self.all[i].rests_until <= self._clock() and self.all[i].breaker.enter():
                self._turn = (i + 1) % count
                return self.all[i]
        return None

    def _soonest(self) -> float:
        now = self._clock()
        return max(0.001, min(max(replica.breaker.wait(), replica.rests_until - now) for replica in self.all))
