"""JSON sent to somebody else's server: many requests at a time, again where that helps, never for ever."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from unirl_env.arguments.extras import needed
from unirl_env.arguments.values import require, require_number
from unirl_env.errors import ConfigError, WireError
from unirl_env.http import (
    CallFailed,
    Client,
    Deadline,
    require_address,
    together,
    try_again,
    warn_of_plain_http,
)
from unirl_env.rewards.external.spending import RateLimit
from unirl_env.rewards.scoring import note_fault
from unirl_env.rewards.secrets import secret

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
Read = TypeVar("Read")

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds: the bound of the random pause after the first failure, which doubles up to the longest."""
THIS_REQUEST = {400, 413, 422}
"""Statuses that may concern one request only: too long a text, a picture that a filter does not let pass."""
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class Endpoint:
    """An address that takes JSON and answers in JSON.

    Attempts that meet a lost connection, a time-out, a reply that is no JSON, or a status of 408, 425, 429 or
    from 500 on, are repeated after a random pause whose bound doubles (exponential backoff with full jitter),
    or after what the server's `Retry-After` says. Refusals of 400, 413 and 422 concern the request, if
    another one was ever accepted.

    Args:
        url: Where requests go.
        token_env: The environment variable that holds the token, sent as `Authorization: Bearer ...`.
            Settings name variables, and never hold a secret.
        headers_env: Further headers, each with the environment variable that holds its value.
        proxy_env: The environment variable that holds the address of a proxy. None uses none; the usual
            variables of proxies are not looked at.
        max_concurrency: The most requests under way at a time.
        requests_per_minute: How often this process may ask.
        timeout: Seconds of one attempt.
        batch_timeout: Seconds of all requests of a batch together, with their pauses, after which what is
            missing is invalid.
        attempts: The most attempts of a request.

    Attributes:
        limit: How often the server may be asked.
        pause: What waits; None is the clock.

    Raises:
        ConfigError: If a setting cannot be used, a variable is not set, or the name of a header is none.
        MissingExtra: If httpx or tenacity are not installed.
    """

    pause: Callable[[float], None] | None = None

    def __init__(
        self,
        url: str,
        *,
        token_env: str | None = None,
        headers_env: Mapping[str, str] | None = None,
        proxy_env: str | None = None,
        max_concurrency: int = 8,
        requests_per_minute: float | None = None,
        timeout: float = 60.0,
        batch_timeout: float = 900.0,
        attempts: int = 5,
    ):
        require_address(url)
        require_number("timeout", timeout, 0, unit="seconds")
        require_number("batch_timeout", batch_timeout, 0, unit="seconds")
        require_number("attempts", attempts, 1, whole=True)
        require_number("max_concurrency", max_concurrency, 1, whole=True)
        self.url, self.timeout, self.batch_timeout = url, timeout, batch_timeout
        self.attempts, self.max_concurrency = attempts, max_concurrency
        self.limit = RateLimit(requests_per_minute)
        self._accepted = False
        variables = {**({"Authorization": token_env} if token_env else {}), **(headers_env or {})}
        headers = {name: _header(name, variable) for name, variable in variables.items()}
        if token_env:
            headers["Authorization"] = f"Bearer {headers['Authorization']}"
        self._client = Client(
            [url],
            extra="remote",
            seconds=timeout,
            headers=lambda: headers,
            proxy=secret(proxy_env),
            max_connections=max_concurrency,
        )
        needed("tenacity", "remote")
        self._client.open()
        if headers:
            warn_of_plain_http(url, ", ".join(variables.values()))

    def together(
        self, work: Callable[[Item, Deadline], Result], items: Sequence[Item]
    ) -> list[Result | CallFailed]:
        """`work(item, deadline)` for every item, several at a time.

        Returns:
            In the order of `items`, what came out or how it failed.

        Raises:
            ConfigError: If the settings are wrong. Requests under way are waited for; no other is begun.
        """
        deadline = Deadline(self.batch_timeout, self.pause)
        results = together(
            lambda item: work(item, deadline), items, self.max_concurrency, deadline, await_others=True
        )
        for result in results if not self._accepted else ():
            if isinstance(result, CallFailed) and result.settings:
                raise ConfigError(f"{self._place} must accept what is asked of it, got {result}.")
        return results

    def post(
        self, body: Mapping[str, Any], deadline: Deadline, read: Callable[[Any], Read], tokens: int = 0
    ) -> Read:
        """Send `body`; what `read` makes of the reply's JSON.

        Args:
            body: JSON.
            deadline: The time there is.
            read: May raise `WireError` for a reply that does not answer the question.
            tokens: How many the request may need at most, for the limit.

        Raises:
            CallFailed: If it comes to nothing.
            ConfigError: If the server does not know us, or the address, with its own words.
        """
        content = json.dumps(body, allow_nan=False).encode()
        reply = try_again(
            lambda: self._attempt(content, deadline, tokens),
            over=lambda made, pause: made >= self.attempts or pause >= deadline.left(),
            sleep=deadline.sleep,
            first=FIRST_PAUSE,
            longest=LONGEST_PAUSE,
            extra="remote",
        )
        try:
            found = read(reply)
        except WireError as error:
            raise CallFailed("a reply of another form", str(error), settings=True) from error
        self._accepted = True
        return found

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @property
    def _place(self) -> str:
        """The address for messages: what follows a question mark may be a secret."""
        return self.url.partition("?")[0]

    def _attempt(self, content: bytes, deadline: Deadline, tokens: int) -> Any:
        wait = self.limit.reserve(tokens, most=deadline.left())
        if wait is None:
            raise CallFailed("no time left", "under the limit of requests or tokens")
        deadline.sleep(wait)
        reply = self._client.send("POST", self.url, content, seconds=min(self.timeout, deadline.left()))
        if 200 <= reply.status < 300:
            try:
                return json.loads(reply.body)
            except (ValueError, RecursionError) as error:
                words = reply.body[:80].decode(errors="replace")
                raise CallFailed("a reply that is no JSON", words, passing=True) from error
        words = f"{reply.message[:500]!r}"
        if reply.passing:
            if reply.status == 429:
                self.limit.hold(min(reply.rest, deadline.left()))
            raise CallFailed(f"status {reply.status}", words, passing=True, after=reply.rest)
        if reply.status in THIS_REQUEST:
            raise CallFailed(f"status {reply.status}", words, settings=True)
        raise ConfigError(
            f"{self._place} must accept our requests, got status {reply.status}: {words}; try another "
            "address, model or token."
        )


def _header(name: str, variable: str) -> str:
    require("headers_env", name, bool(_HEADER.fullmatch(str(name))), "names of headers")
    value = secret(variable)
    if value is None:
        raise ConfigError(
            f"The environment variable {variable!r} must hold the value of the header {name}, got nothing; "
            "try to set it where the run starts, or leave the option out."
        )
    return value


def warn_of_failures(name: str, failures: Sequence[CallFailed], count: int) -> None:
    """One warning of what `name` could not score among `count` samples: `failures`, one per sample."""
    if failures:
        kinds = Counter(failure.kind for failure in failures)
        note_fault(f"{name}: {failures[0]}")
        logger.warning(
            "Scorer `%s` failed on %d of %d samples, which count as invalid (%s); one of them: %s",
            name,
            len(failures),
            count,
            ", ".join(f"{number} x {kind}" for kind, number in kinds.most_common()),
            failures[0],
        )
