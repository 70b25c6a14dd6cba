"""The service without its doors: rewards with a thread each, memory, counters, and an end that is orderly."""

from __future__ import annotations

import difflib
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from unirl_env.rewards.scoring import checked_scorer, is_pointwise, scorer_name
from unirl_env.rewards.spec import needs_of
from unirl_env.rewards.wire import PROTOCOL, ScoreRequest
from unirl_env.service.batching import Batcher, Busy
from unirl_env.service.error_replies import RETRY_SECONDS, Refused
from unirl_env.service.idempotency import OtherBody, Remembered
from unirl_env.service.prometheus import Metrics
from unirl_env.service.request_body import MemoryBudget
from unirl_env.service.service_settings import ServiceSettings
from unirl_env.types import Scorer


class RewardService:
    """Rewards that several clients ask at once.

    Args:
        settings: How to serve.
        scorers: Name to scorer.

    Attributes:
        metrics: What has happened.
        draining: Whether new requests are refused, because the service ends.
        room: The bytes of all requests.
    """

    def __init__(self, settings: ServiceSettings, scorers: Mapping[str, Scorer]):
        self.settings = settings
        self.metrics = Metrics()
        self.draining = False
        self.room = MemoryBudget(settings.max_bytes)
        self._in_flight = 0
        self._counting = threading.Lock()
        self._remembered = Remembered(settings.remember, settings.remember_seconds)
        self._batchers: dict[str, Batcher] = {}
        locks: dict[int, threading.Lock] = {}
        for name, scorer in scorers.items():
            watch = self.metrics.of(name)
            self._batchers[name] = Batcher(
                checked_scorer(scorer, f"Reward `{name}`"),
                max_batch=settings.max_batch,
                max_wait=settings.max_wait_ms / 1000,
                max_waiting=settings.max_waiting,
                watch=watch,
                lock=locks.setdefault(id(scorer), threading.Lock()),
            )
            batcher = self._batchers[name]
            watch.watch(lambda batcher=batcher: batcher.waiting, lambda batcher=batcher: batcher.call_seconds)

    @property
    def stuck(self) -> bool:
        """Whether a call of a scorer lasts longer than `stuck_seconds`."""
        longest = max((batcher.call_seconds for batcher in self._batchers.values()), default=0.0)
        return longest > self.settings.stuck_seconds

    @property
    def in_flight(self) -> int:
        """Requests that have been taken and not been answered."""
        return self._in_flight

    @contextmanager
    def taken(self):
        """Count a request as taken and not answered until the end of a `with`."""
        with self._counting:
            self._in_flight += 1
        try:
            yield
        finally:
            with self._counting:
                self._in_flight -= 1

    def knows(self, reward: str) -> bool:
        """Whether there is a reward of this name."""
        return reward in self._batchers

    def described(self) -> dict[str, Any]:
        """The rewards, as `GET /rewards` tells them."""
        rewards = []
        for name, batcher in self._batchers.items():
            spec = self.settings.rewards.get(name, batcher.scorer)
            rewards.append(
                {
                    "name": name,
                    "scorer": scorer_name(batcher.scorer),
                    "needs": sorted(needs_of(spec)),
                    "pointwise": is_pointwise(batcher.scorer),
                }
            )
        return {"protocol": PROTOCOL, "rewards": rewards}

    def ask(self, request: ScoreRequest, digest: bytes) -> tuple[Future, bool]:
        """The scores of a request, and whether an earlier attempt is already at them.

        Raises:
            Refused: If the reward is unknown, the id stands for something else, or too much waits.
        """
        if not self.knows(request.reward):
            names = list(self._batchers)
            near = difflib.get_close_matches(request.reward[:100], names, n=1)
            raise Refused(
                404,
                "unknown_reward",
                f"`reward` must be one of {names}, got {request.reward!r:.100}; "
                f"try {near[0]!r} or GET /rewards."
                if near
                else f"`reward` must be one of {names}, got {request.reward!r:.100}; try GET /rewards.",
            )
        batcher = self._batchers[request.reward]
        try:
            return self._remembered.ask(
                request.id, digest, lambda: batcher.submit(request.samples, request.prompts)
            )
        except OtherBody:
            raise Refused(
                409,
                "other_body",
                f"`id` must be new for every new request, got {request.id!r:.100}, which stands for another "
                "body; try uuid4().",
            ) from None
        except Busy:
            raise Refused(
                429,
                "busy",
                f"At most {batcher.max_waiting} samples may wait at `{request.reward}`, and "
                f"{batcher.waiting} do; try again later.",
                {"Retry-After": str(RETRY_SECONDS)},
            ) from None

    def drain(self) -> None:
        """Refuse new requests; those in flight go on."""
        self.draining = True

    def abandon(self) -> None:
        """Answer what has not come to its end."""
        for batcher in self._batchers.values():
            batcher.abandon()

    def close(self, seconds: float = 0.0) -> None:
        """End the threads, and wait up to `seconds` for those that are at work."""
        end = time.monotonic() + seconds
        for batcher in self._batchers.values():
            batcher.close(max(0.0, end - time.monotonic()))
