"""One request at a reward service: sent to its replicas until one of them answers."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from unirl_env.errors import ConfigError, ContractError, UnirlError, WireError
from unirl_env.http import CallFailed, Client, Deadline, Reply, checked_urls, try_again, warn_of_plain_http
from unirl_env.rewards.remote.replicas import NoReplica, Replica, Replicas
from unirl_env.rewards.secrets import secret
from unirl_env.rewards.wire import TENSORS
from unirl_env.settings.fields import check_values, setting

Answer = TypeVar("Answer")
LONGEST_WAIT = 10.0
"""Seconds; the most that is waited between two attempts, unless the service asks for more."""
KEEP_ALIVE = 3.0
"""Seconds; less than servers keep a connection that is not used, so that none is found closed."""
LONGEST_MESSAGE = 400


class Again(CallFailed):
    """An attempt without an answer that can be used; another one may have it.

    Attributes:
        full: The service is well and has no room, so that this was no failure.
        rest: Seconds for which it wants to be left alone.
    """

    def __init__(self, cause: str, *, full: bool = False, rest: float = 0.0):
        super().__init__(cause, passing=True)
        self.full = full
        self.rest = rest


class TooLarge(Exception):
    """The service takes smaller requests only."""


@dataclass(eq=False)
class ServiceClient:
    """Asks a service that may stand at several URLs.

    An object can be pickled, and used after a fork: connections, and what is known of the replicas' health,
    begin anew in each process. The token is read in the process that sends it, and is kept by its
    connections only.

    Attributes:
        urls: The replicas: one URL, or several.
        token_env: The environment variable that holds the service's token. It is read in every process that
            asks, stands in no configuration, and is sent to `urls` only.
        timeout: Seconds for one attempt, and for waiting until a full service has room.
        connect_timeout: Seconds for connecting.
        attempts: The most attempts for one request; those that found the service full do not count.
        concurrency: The most requests under way.
        failures: After so many failures in a row a replica is left alone,
        cooldown: for so many seconds; then one request tries it.
        backoff: Seconds; after attempt k, a random time up to `backoff * 2 ** (k - 1)` is waited.
        counts: `attempts`, `failures` (attempts without an answer) and `full` (those that found no room).
    """

    urls: tuple[str, ...]
    token_env: str = "UNIRL_SERVICE_TOKEN"
    timeout: float = setting(60.0, above=0)
    connect_timeout: float = setting(5.0, above=0)
    attempts: int = setting(5, least=1)
    concurrency: int = setting(8, least=1)
    failures: int = setting(5, least=1)
    cooldown: float = setting(10.0, least=0)
    backoff: float = setting(0.5, least=0)
    counts: Counter[str] = field(init=False, default_factory=Counter)
    _opened: Any = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        self.urls = checked_urls(self.urls)
        check_values(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def open(self) -> _Opened:
        """What belongs to this process, made at the first call in it.

        Raises:
            MissingExtra: Without httpx.
        """
        if self._opened is None or self._opened.process != os.getpid():
            client = Client(
                self.urls,
                extra="remote",
                seconds=self.timeout,
                connect_seconds=self.connect_timeout,
                headers=partial(_headers, self.urls, self.token_env),
                any_proxy=True,
                max_keepalive_connections=self.concurrency,
                keepalive_expiry=KEEP_ALIVE,
            )
            client.open()
            self._opened = _Opened(client, Replicas(self.urls, self.failures, self.cooldown))
        return self._opened

    def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.client.close()

    def look(self, url: str, path: str, read: Callable[[Any], Answer]) -> Answer:
        """What one replica says at `path`, asked once.

        Raises:
            Again: If it does not answer.
            ConfigError: If it refuses.
        """
        return self._exchange(self.open(), url, path, None, read)

    def ask(self, path: str, body: bytes | None, read: Callable[[Any], Answer], deadline: Deadline) -> Answer:
        """What any replica says.

        Args:
            path: What is asked.
            body: A request to be posted; the same bytes go out at every attempt.
            read: From the JSON of a reply to the answer; a `WireError` says that it is none.
            deadline: Ends all waiting.

        Raises:
            CallFailed: If no attempt was answered, with the last cause.
            TooLarge: If the service takes smaller requests only.
            ContractError: If the service cannot judge these samples.
            ConfigError: If it refuses for another reason that does not pass.
            MissingExtra: Without httpx or tenacity.
        """
        opened, tries = self.open(), _Tries()
        return try_again(
            lambda: self._attempt(opened, tries, path, body, read, deadline),
            over=lambda made, pause: (
                deadline.over() or tries.failed >= self.attempts or tries.full_for() > self.timeout
            ),
            sleep=deadline.sleep,
            first=self.backoff,
            longest=LONGEST_WAIT,
            extra="remote",
        )

    def _attempt(
        self,
        opened: _Opened,
        tries: _Tries,
        path: str,
        body: bytes | None,
        read: Callable[[Any], Answer],
        deadline: Deadline,
    ) -> Answer:
        try:
            replica = opened.replicas.take(tries.last, deadline.over)
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
        try:
            reply = opened.client.send("GET" if body is None else "POST", url + path, body, TENSORS)
        except CallFailed as failed:
            raise Again(f"{url} did not answer ({failed})") from failed
        _check(reply, url, self.token_env)
        try:
            return read(json.loads(reply.body))
        except (WireError, ValueError, RecursionError) as error:
            raise Again(f"{url} answered what cannot be read ({error})") from error

    def _count(self, opened: _Opened, what: str) -> None:
        with opened.lock:
            self.counts[what] += 1


@dataclass
class _Opened:
    """What belongs to one process."""

    client: Client
    replicas: Replicas
    lock: Any = field(default_factory=threading.Lock)
    process: int = field(default_factory=os.getpid)


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


def _headers(urls: tuple[str, ...], token_env: str) -> Mapping[str, str]:
    headers = {"Accept-Encoding": "identity", "User-Agent": "unirl_env"}
    token = secret(token_env)
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
        for url in urls:
            warn_of_plain_http(url, token_env)
    return headers


def _check(reply: Reply, url: str, token_env: str) -> None:
    """Nothing, if the status says success.

    Raises:
        Again: If the same request may succeed later or elsewhere.
        TooLarge: If a smaller one may.
        ContractError: If these samples cannot be judged by this reward.
        ConfigError: If a setting must be mended first.
    """
    status = reply.status
    if status == 200:
        return
    line = " ".join("".join(c if c.isprintable() else " " for c in reply.message).split())
    line = f"{line[:LONGEST_MESSAGE]}..." if len(line) > LONGEST_MESSAGE else line
    words = f"{status}: {line.rstrip('.')}" if line else str(status)
    if reply.passing:
        raise Again(f"{url} answered {words}", full=status == 429, rest=reply.rest)
    if status == 413:
        raise TooLarge(f"{url} answered {words}")
    if status == 422:
        raise ContractError(f"Samples must be such that the reward at {url} can judge them, got {words}.")
    remedy = {
        401: f"try to set the environment variable {token_env} to the token of the service",
        403: f"try to set the environment variable {token_env} to a token that may ask for this",
        404: "try a reward that the service lists at /rewards, and check the URL",
    }.get(status, "try the same version of unirl_env on both sides, and check the URL")
    raise ConfigError(f"The reward service at {url} must take the request, got {words}; {remedy}.")
