"""One request at a reward service: sent to its replicas until one of them answers."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from unirl_env.errors import MissingExtra, UnirlError, WireError
from unirl_env.rewards.remote.addresses import is_this_machine, warn_of_plain_http
from unirl_env.rewards.remote.outcomes import Again, TooLarge, check_reply
from unirl_env.rewards.remote.replicas import NoReplica, Replica, Replicas
from unirl_env.rewards.secrets import secret
from unirl_env.rewards.wire import TENSORS

__all__ = ["ServiceClient"]

Answer = TypeVar("Answer")
LONGEST_WAIT = 10.0
"""Seconds; the most that is waited between two attempts, unless the service asks for more."""
LARGEST_REPLY = 64 * 2**20
"""Bytes."""
KEEP_ALIVE = 3.0
"""Seconds; less than servers keep a connection that is not used, so that none is found closed."""


@dataclass(eq=False)
class ServiceClient:
    """Asks a service that may stand at several URLs.

    An object can be pickled, and used after a fork: connections, and what is known of the replicas' health,
    begin anew in each process. The token is read in the process that sends it, and is kept by its
    connections only.

    Attributes:
        urls: The replicas, as `checked_urls` gives them.
        token_env: The environment variable that holds the token.
        timeout: Seconds for one attempt, and for waiting until a full service has room.
        connect_timeout: Seconds for connecting.
        attempts: The most attempts for one request; those that found the service full do not count.
        backoff: Seconds; after attempt k, a random time up to `backoff * 2 ** (k - 1)` is waited.
        failures: So many in a row, and a replica is left alone.
        cooldown: For so many seconds.
        connections: How many are kept open.
        counts: `attempts`, `failures` (attempts without an answer) and `full` (those that found no room).
    """

    urls: tuple[str, ...]
    token_env: str
    timeout: float
    connect_timeout: float
    attempts: int
    backoff: float
    failures: int
    cooldown: float
    connections: int
    counts: Counter[str] = field(init=False, default_factory=Counter)
    _opened: _Opened | None = field(init=False, default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def open(self) -> _Opened:
        """What belongs to this process, made at the first call in it.

        Raises:
            MissingExtra: Without httpx.
        """
        if self._opened is None or self._opened.process != os.getpid():
            self._opened = _Opened(
                process=os.getpid(),
                http=self._connections(),
                replicas=Replicas(self.urls, self.failures, self.cooldown),
            )
        return self._opened

    def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        opened, self._opened = self._opened, None
        if opened is not None and opened.process == os.getpid():
            opened.http.close()

    def look(self, url: str, path: str, read: Callable[[Any], Answer]) -> Answer:
        """What one replica says at `path`, asked once.

        Raises:
            Again: If it does not answer.
            ConfigError: If it refuses.
        """
        return self._exchange(self.open(), url, path, None, read)

    def ask(
        self, path: str, body: bytes | None, read: Callable[[Any], Answer], halt: threading.Event
    ) -> Answer:
        """What any replica says.

        Args:
            path: What is asked.
            body: A request to be posted; the same bytes go out at every attempt.
            read: From the JSON of a reply to the answer; a `WireError` says that it is none.
            halt: Ends all waiting.

        Raises:
            Again: If no attempt was answered, with the last cause.
            TooLarge: If the service takes smaller requests only.
            ContractError: If the service cannot judge these samples.
            ConfigError: If it refuses for another reason that does not pass.
            MissingExtra: Without httpx or tenacity.
        """
        try:
            import tenacity
        except ImportError as error:
            raise MissingExtra("tenacity", "remote") from error
        opened, tries = self.open(), _Tries()

        def is_over(state: tenacity.RetryCallState) -> bool:
            return halt.is_set() or tries.failed >= self.attempts or tries.full_for() > self.timeout

        def wait(state: tenacity.RetryCallState) -> float:
            most = self.backoff * 2.0 ** min(state.attempt_number - 1, 30)
            return opened.random.uniform(0.0, min(most, LONGEST_WAIT))

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Again),
            stop=is_over,
            wait=wait,
            sleep=tenacity.sleep_using_event(halt),
            reraise=True,
        )
        return retrying(self._attempt, opened, tries, path, body, read, halt)

    def _attempt(
        self,
        opened: _Opened,
        tries: _Tries,
        path: str,
        body: bytes | None,
        read: Callable[[Any], Answer],
        halt: threading.Event,
    ) -> Answer:
        try:
            replica = opened.replicas.take(tries.last, halt.is_set)
        except NoReplica as error:
            raise tries.note(Again(f"all replicas failed, at last: {error}")) from None
        if replica is None:
            raise Again("the call was given up")
        tries.last = replica
        self._count(opened, "attempts")
        try:
            answer = self._exchange(opened, replica.url, path, body, read)
        except Again as again:
            self._count(opened, "full" if again.full else "failures")
            rest = min(again.rest, self.timeout)
            if again.full:
                opened.replicas.answered(replica, rest)
            else:
                opened.replicas.failed(replica, rest, str(again))
            raise tries.note(again) from again.__cause__
        except (UnirlError, TooLarge):
            opened.replicas.answered(replica)  # a refusal is an answer
            raise
        except BaseException:
            opened.replicas.failed(replica)
            raise
        opened.replicas.answered(replica)
        return answer

    def _exchange(
        self, opened: _Opened, url: str, path: str, body: bytes | None, read: Callable[[Any], Answer]
    ) -> Answer:
        import httpx

        method, kind = ("GET", {}) if body is None else ("POST", {"Content-Type": TENSORS})
        end = time.monotonic() + self.timeout
        try:
            with opened.http.stream(method, url + path, content=body, headers=kind) as response:
                received = bytearray()
                for piece in response.iter_bytes():
                    received += piece
                    if time.monotonic() > end:
                        raise Again(f"{url} did not answer within {self.timeout:g} s")
                    if len(received) > LARGEST_REPLY:
                        raise Again(f"{url} answered with more than {LARGEST_REPLY} bytes")
        except httpx.TimeoutException as error:
            raise Again(f"{url} did not answer in time ({type(error).__name__})") from error
        except httpx.RequestError as error:
            raise Again(f"{url} did not answer ({type(error).__name__}: {error})") from error
        check_reply(response.status_code, response.headers, bytes(received), url, self.token_env)
        try:
            return read(json.loads(received))
        except (WireError, ValueError, RecursionError) as error:
            raise Again(f"{url} answered what cannot be read ({error})") from error

    def _count(self, opened: _Opened, what: str) -> None:
        with opened.lock:
            self.counts[what] += 1

    def _connections(self) -> Any:
        try:
            import httpx
        except ImportError as error:
            raise MissingExtra("httpx", "remote") from error
        headers = {"Accept-Encoding": "identity", "User-Agent": "unirl_env"}
        token = secret(self.token_env)
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
            for url in self.urls:
                if url.startswith("http://") and not is_this_machine(url):
                    warn_of_plain_http(url, self.token_env)
        return httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(self.timeout, connect=min(self.connect_timeout, self.timeout)),
            limits=httpx.Limits(max_keepalive_connections=self.connections, keepalive_expiry=KEEP_ALIVE),
            # Proxies are those of the environment, except on the way to this machine.
            mounts={f"all://{urlsplit(url).netloc}": None for url in self.urls if is_this_machine(url)},
        )


@dataclass
class _Opened:
    """What belongs to one process."""

    process: int
    http: Any
    replicas: Replicas
    lock: Any = field(default_factory=threading.Lock)
    random: random.Random = field(default_factory=random.Random)  # waiting must not move anybody's stream


@dataclass
class _Tries:
    """How far one request has come."""

    last: Replica | None = None
    failed: int = 0
    full_since: float | None = None

    def note(self, again: Again) -> Again:
        if again.full:
            self.full_since = self.full_since or time.monotonic()
        else:
            self.failed += 1
        return again

    def full_for(self) -> float:
        return 0.0 if self.full_since is None else time.monotonic() - self.full_since
