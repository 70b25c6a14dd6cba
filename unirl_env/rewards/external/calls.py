"""JSON sent to somebody else's server: many requests at a time, again where that helps, never for ever."""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

from unirl_env.arguments.values import require, require_number
from unirl_env.errors import ConfigError, MissingExtra, UnirlError, WireError
from unirl_env.errors.masks import HIDDEN, hide, masked
from unirl_env.rewards.external.rate_limit import RateLimit
from unirl_env.rewards.external.turns import CallFailed, Turn
from unirl_env.rewards.refusals import PASSING, THIS_REQUEST, retry_after, words_of
from unirl_env.rewards.remote.addresses import is_this_machine, require_address, warn_of_plain_http
from unirl_env.rewards.secrets import secret

__all__ = ["Calls"]

Item, Result, Read = TypeVar("Item"), TypeVar("Result"), TypeVar("Read")

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds: the bound of the random pause after the first failure, which doubles up to the longest."""
CONNECT_SECONDS = 10.0
MOST_BYTES = 64 * 2**20
"""Of a reply."""
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class _Passing(CallFailed):
    """Another attempt may do better, after so many seconds at the earliest."""

    def __init__(self, kind: str, detail: str = "", after: float = 0.0):
        super().__init__(kind, detail)
        self.after = after


class Calls:
    """An address that takes JSON and answers in JSON.

    Attempts that meet a lost connection, a time-out, a reply that is no JSON, or a status of 408, 425, 429 or
    from 500 on, are repeated after a random pause whose bound doubles (exponential backoff with full jitter),
    or after what the server's `Retry-After` says. Redirects are not followed, since they would take the
    token elsewhere. Refusals of 400, 413 and 422 concern the request, if another one was ever accepted.

    Args:
        url: Where requests go.
        headers: Sent with each; their values appear in no message.
        timeout: Seconds of one attempt.
        batch_timeout: Seconds of all requests of a batch together, with their pauses.
        attempts: The most attempts of a request.
        max_concurrency: The most requests under way at a time.
        limit: How often the server may be asked.
        proxy: The address of a proxy. None uses none; variables of the environment are not looked at.
        pause: What waits, for tests; by default the clock.

    Raises:
        ConfigError: If the address or a number cannot be used.
        MissingExtra: If httpx or tenacity are not installed.

    Reference:
        https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/ (full jitter).
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        batch_timeout: float = 900.0,
        attempts: int = 5,
        max_concurrency: int = 8,
        limit: RateLimit | None = None,
        proxy: str | None = None,
        pause: Callable[[float], None] | None = None,
    ):
        require_address(url)
        require_number("timeout", timeout, 0, unit="seconds")
        require_number("batch_timeout", batch_timeout, 0, unit="seconds")
        require_number("attempts", attempts, 1, whole=True)
        require_number("max_concurrency", max_concurrency, 1, whole=True)
        try:
            import httpx
            import tenacity  # noqa: F401
        except ImportError as error:
            raise MissingExtra(error.name or "httpx", "remote") from error
        self.url, self.timeout, self.batch_timeout = url, timeout, batch_timeout
        self.attempts, self.max_concurrency = attempts, max_concurrency
        self.limit, self._pause = limit or RateLimit(), pause
        values = [value for value in (headers or {}).values() if value]
        masked({"url": url, "proxy": proxy})  # What they carry is remembered, and appears in no message.
        self._hidden = [*values, *(value.removeprefix("Bearer ") for value in values)]
        self._random = random.Random()  # of its own: pauses change no stream that anything is drawn from
        self._accepted = False
        self._headers, self._proxy = {**(headers or {}), "Content-Type": "application/json"}, proxy or None
        self._process, self._client = 0, None
        try:
            httpx.URL(url)
            self._connections()
        except (httpx.InvalidURL, ValueError) as error:
            said = self._open(str(error))  # and no cause, which would show a header
            raise ConfigError(f"`url` and the proxy must be addresses, got {said}.") from None

    @classmethod
    def authorised(
        cls,
        url: str,
        *,
        token_env: str | None = None,
        headers_env: Mapping[str, str] | None = None,
        proxy_env: str | None = None,
        **settings: Any,
    ) -> Calls:
        """With what the environment knows: settings name its variables, and never hold a secret.

        Args:
            url: Where requests go.
            token_env: The variable that holds the token; sent as `Authorization: Bearer ...`.
            headers_env: Header to the variable that holds its value.
            proxy_env: The variable that holds the address of a proxy.
            **settings: Those of `Calls`.

        Raises:
            ConfigError: If a variable is not set, or the name of a header is none.
        """
        wanted = {**({"Authorization": token_env} if token_env else {}), **(headers_env or {})}
        headers = {}
        for name, variable in wanted.items():
            require("headers_env", name, bool(_HEADER.fullmatch(str(name))), "names of headers")
            value = secret(variable)
            if value is None:
                raise ConfigError(
                    f"The environment variable {variable!r} must hold the value of the header {name}, got "
                    "nothing; try to set it where the run starts, or leave the option out."
                )
            headers[name] = f"Bearer {value}" if name == "Authorization" and token_env else value
        made = cls(url, headers=headers, proxy=secret(proxy_env), **settings)
        if headers and url.startswith("http:") and not is_this_machine(url):
            warn_of_plain_http(made.place, ", ".join(wanted.values()))
        return made

    @property
    def place(self) -> str:
        """The address for messages: what follows a question mark may be a secret."""
        return self.url.partition("?")[0]

    def together(
        self, work: Callable[[Item, Turn], Result], items: Sequence[Item]
    ) -> list[Result | CallFailed]:
        """`work(item, turn)` for every item, several at a time.

        Returns:
            In the order of `items`, what came out or how it failed.

        Raises:
            ConfigError: If the settings are wrong. Requests under way are waited for; no other is begun.
        """
        turn = Turn(self.batch_timeout, self._pause)
        results: list[Any] = [CallFailed("no time left") for _ in items]
        pool = ThreadPoolExecutor(max(1, min(self.max_concurrency, len(items))), "calls")
        try:
            places = {pool.submit(work, item, turn): place for place, item in enumerate(items)}
            for done in as_completed(places, timeout=turn.left()):
                try:
                    results[places[done]] = done.result()
                except CallFailed as failed:
                    results[places[done]] = failed
        except UnirlError:
            turn.stop()
            pool.shutdown(cancel_futures=True)
            raise
        except TimeoutError:
            pass  # what is still under way ends by its own time-out, and nobody waits for it
        finally:
            turn.stop()
            pool.shutdown(wait=False, cancel_futures=True)
        if not self._accepted:
            for result in results:
                if isinstance(result, CallFailed) and result.settings:
                    raise ConfigError(f"{self.place} must accept what is asked of it, got {result}.")
        return results

    def post(self, body: Mapping[str, Any], turn: Turn, read: Callable[[Any], Read], tokens: int = 0) -> Read:
        """Send `body`; what `read` makes of the reply's JSON.

        Args:
            body: JSON.
            turn: The time there is.
            read: May raise `WireError` for a reply that does not answer the question.
            tokens: How many the request may need at most, for the limit.

        Raises:
            CallFailed: If it comes to nothing.
            ConfigError: If the server does not know us, or the address, with its own words.
        """
        from tenacity import Retrying, retry_if_exception_type

        content = json.dumps(body, allow_nan=False).encode()
        retrying = Retrying(
            retry=retry_if_exception_type(_Passing),
            wait=self._wait,
            stop=lambda state: state.attempt_number >= self.attempts or state.upcoming_sleep >= turn.left(),
            sleep=turn.sleep,
            reraise=True,
        )
        reply = retrying(self._attempt, content, turn, tokens)
        try:
            found = read(reply)
        except WireError as error:
            raise CallFailed("a reply of another form", self._open(str(error)), settings=True) from error
        self._accepted = True
        return found

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None and self._process == os.getpid():
            self._client.close()
        self._client = None

    def _attempt(self, content: bytes, turn: Turn, tokens: int) -> Any:
        wait = self.limit.reserve(tokens, most=turn.left())
        if wait is None:
            raise CallFailed("no time left", "under the limit of requests or tokens")
        turn.sleep(wait)
        status, headers, data = self._exchange(content, min(self.timeout, turn.left()))
        if 200 <= status < 300:
            try:
                return json.loads(data)
            except (ValueError, RecursionError) as error:
                raise _Passing("a reply that is no JSON", self._open(data[:80])) from error
        words = f"{self._open(words_of(data))[:500]!r}"
        if status in PASSING or status >= 500:
            after = retry_after(headers.get("retry-after"))
            if status == 429:
                self.limit.hold(min(after, turn.left()))
            raise _Passing(f"status {status}", words, after)
        if status in THIS_REQUEST:
            raise CallFailed(f"status {status}", words, settings=True)
        raise ConfigError(
            f"{self.place} must accept our requests, got status {status}: {words}; try another address, "
            "model or token."
        )

    def _connections(self) -> Any:
        """Those of this process: a fork must not share the sockets of its parent."""
        import httpx

        if self._client is None or self._process != os.getpid():
            self._client = httpx.Client(
                headers=self._headers,
                limits=httpx.Limits(max_connections=self.max_concurrency),
                proxy=self._proxy,
                trust_env=False,
            )
            self._process = os.getpid()
        return self._client

    def _exchange(self, content: bytes, seconds: float) -> tuple[int, Mapping[str, str], bytes]:
        import httpx

        ends = time.monotonic() + seconds
        limits = httpx.Timeout(seconds, connect=min(CONNECT_SECONDS, seconds))
        data = bytearray()
        try:
            with self._connections().stream("POST", self.url, content=content, timeout=limits) as response:
                for chunk in response.iter_bytes():
                    data += chunk
                    # A server that sends a byte now and then never meets the client's own time-out.
                    if time.monotonic() > ends:
                        raise _Passing("time-out", f"{len(data)} bytes within {seconds:g} s")
                    if len(data) > MOST_BYTES:
                        raise CallFailed("too large a reply", f"more than {MOST_BYTES} bytes")
                return response.status_code, response.headers, bytes(data)
        except httpx.TimeoutException as error:
            raise _Passing("time-out", f"{type(error).__name__} within {seconds:g} s") from error
        except httpx.RequestError as error:
            raise _Passing("a lost connection", self._open(f"{type(error).__name__}: {error}")) from error

    def _wait(self, state: Any) -> float:
        most = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (state.attempt_number - 1))
        return max(self._random.uniform(0, most), state.outcome.exception().after)

    def _open(self, words: str | bytes) -> str:
        """Words of others without our secrets, which some servers repeat."""
        text = words.decode(errors="replace") if isinstance(words, bytes) else words
        for value in self._hidden:
            text = text.replace(value, HIDDEN)
        return hide(text)
