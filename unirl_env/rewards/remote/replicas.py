"""The places that can answer a request, and whose turn it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unirl_env.rewards.remote.breaker import CircuitBreaker

__all__ = ["NoReplica", "Replica", "Replicas"]

GLANCE = 0.2
"""Seconds between looks at whether to give up."""


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
