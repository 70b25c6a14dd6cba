"""The one HTTP client: what asks judges, scorers of others, the reward service and engines on servers.

Here stand connections, time-outs, retries, proxies, the most bytes of an answer, and the checks of addresses.
What an answer means to a judge, a service or an engine, each of them says itself.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from unirl_env.arguments.extras import needed
from unirl_env.arguments.values import require
from unirl_env.errors import ConfigError, UnirlError
from unirl_env.errors.masks import hide, masked

__all__ = [
    "CallFailed",
    "Client",
    "Deadline",
    "Reply",
    "checked_urls",
    "is_loopback",
    "is_this_machine",
    "require_address",
    "together",
    "try_again",
    "warn_of_plain_http",
]

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

CONNECT_SECONDS = 10.0
MOST_BYTES = 64 * 2**20
"""Of an answer."""
LATER = {408, 425, 429}
"""Statuses that a later attempt may not meet; so are all from 500 on."""

_random = random.Random()  # of its own: pauses change no stream that anything is drawn from


class CallFailed(Exception):
    """One request has come to nothing.

    Attributes:
        kind: A few words, by which failures are counted.
        passing: Whether another attempt may do better.
        after: Seconds after which, at the earliest.
        settings: Whether a wrong setting would look like this, too.
    """

    def __init__(
        self,
        kind: str,
        detail: str = "",
        *,
        passing: bool = False,
        after: float = 0.0,
        settings: bool = False,
    ):
        super().__init__(hide(f"{kind}: {detail}" if detail else kind))
        self.kind, self.passing, self.after, self.settings = kind, passing, after, settings


@dataclass(frozen=True)
class Reply:
    """What a server answers.

    Attributes:
        status: The HTTP status.
        headers: By names in lower case.
        body: All of it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def passing(self) -> bool:
        """Whether a later attempt may meet another status."""
        return self.status in LATER or self.status >= 500

    @property
    def rest(self) -> float:
        """Seconds for which the server wants to be left alone, told as a number or a date; 0 by default."""
        header = self.headers.get("retry-after") or "0"
        try:
            seconds = float(header)
        except ValueError:
            try:
                seconds = parsedate_to_datetime(header).timestamp() - time.time()
            except (ValueError, TypeError):
                return 0.0
        return max(0.0, seconds) if math.isfinite(seconds) else 0.0

    @property
    def content(self) -> Any:
        """The JSON, or the text if it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return self.body.decode(errors="replace")

    @property
    def message(self) -> str:
        """What the server says of an error, under several names, in an object or as a text; no secret."""
        content = self.content
        for name in ("error", "message", "detail"):
            if isinstance(content, Mapping) and content.get(name):
                content = content[name]
        return hide(str(content))


class Client:
    """Connections to one or several servers, opened on first use and anew in every process.

    Redirects are not followed, since they would take a token elsewhere. Secrets in addresses are hidden in
    messages from then on.

    Args:
        urls: Where requests will go.
        extra: The extra that installs the library, for the error where it is missing.
        seconds: How long an answer may take in all.
        connect_seconds: How long connecting may take.
        headers: Called in each process for what every request carries, such as a token.
        proxy: The address of a proxy.
        any_proxy: Whether proxies of the environment count, except on the way to this machine.
        most_bytes: Of an answer.
        **limits: Those of connections; see `httpx.Limits`.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        extra: str,
        seconds: float,
        connect_seconds: float = CONNECT_SECONDS,
        headers: Callable[[], Mapping[str, str]] = dict,
        proxy: str | None = None,
        any_proxy: bool = False,
        most_bytes: int = MOST_BYTES,
        **limits: Any,
    ):
        masked({"urls": list(urls), "proxy": proxy})
        self.urls, self.seconds, self.connect_seconds = tuple(urls), seconds, connect_seconds
        self._extra, self._headers, self._proxy, self._any_proxy = extra, headers, proxy, any_proxy
        self._most_bytes, self._limits = most_bytes, limits
        self._opened, self._process = None, 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def open(self) -> Any:
        """The connections of this process: a fork must not share the sockets of its parent.

        Raises:
            MissingExtra: Without httpx.
            ConfigError: If an address is none.
        """
        httpx = needed("httpx", self._extra)
        if self._opened is None or self._process != os.getpid():
            own = [url for url in self.urls if is_this_machine(url)] if self._any_proxy else []
            try:
                for url in self.urls:
                    httpx.URL(url)
                self._opened = httpx.Client(
                    headers=dict(self._headers()),
                    limits=httpx.Limits(**self._limits),
                    proxy=self._proxy,
                    trust_env=self._any_proxy,
                    mounts={f"all://{urlsplit(url).netloc}": None for url in own},
                )
            except (httpx.InvalidURL, ValueError) as error:
                # Without a cause, which would show a header.
                raise ConfigError(f"`url` and the proxy must be addresses, got {error}.") from None
            self._process = os.getpid()
        return self._opened

    def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        if self._opened is not None and self._process == os.getpid():
            self._opened.close()
        self._opened = None

    def send(
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        kind: str = "application/json",
        seconds: float | None = None,
    ) -> Reply:
        """Ask once.

        Args:
            method: `"GET"` or `"POST"`.
            url: The whole address.
            body: What is posted.
            kind: Its content type.
            seconds: How long all of it may take; by default, as long as ever.

        Raises:
            CallFailed: If no answer comes in time, or too large a one.
        """
        httpx = needed("httpx", self._extra)
        seconds = self.seconds if seconds is None else seconds
        limits = httpx.Timeout(seconds, connect=min(self.connect_seconds, seconds))
        headers = {} if body is None else {"Content-Type": kind}
        ends, data = time.monotonic() + seconds, bytearray()
        try:
            with self.open().stream(method, url, content=body, headers=headers, timeout=limits) as response:
                for chunk in response.iter_bytes():
                    data += chunk
                    # A server that sends a byte now and then never meets the client's own time-out.
                    if time.monotonic() > ends:
                        raise CallFailed("time-out", f"{len(data)} bytes within {seconds:g} s", passing=True)
                    if len(data) > self._most_bytes:
                        raise CallFailed("too large a reply", f"more than {self._most_bytes} bytes")
                return Reply(response.status_code, response.headers, bytes(data))
        except httpx.TimeoutException as error:
            words = f"{type(error).__name__} within {seconds:g} s"
            raise CallFailed("time-out", words, passing=True) from error
        except httpx.RequestError as error:
            words = f"{type(error).__name__}: {error}"
            raise CallFailed("a lost connection", words, passing=True) from error


class Deadline:
    """The time that several requests have together; it can be cut short.

    Args:
        seconds: How many from now on; infinitely many by default.
        pause: What waits, for tests; by default the clock.
    """

    def __init__(self, seconds: float = math.inf, pause: Callable[[float], None] | None = None):
        self._ends, self._over, self._pause = time.monotonic() + seconds, threading.Event(), pause

    def left(self) -> float:
        """Seconds; 0 once it is over."""
        return 0.0 if self._over.is_set() else max(0.0, self._ends - time.monotonic())

    def over(self) -> bool:
        """Whether nothing may begin any more."""
        return not self.left()

    def stop(self) -> None:
        """Let nothing begin any more."""
        self._over.set()

    def sleep(self, seconds: float) -> None:
        """Wait.

        Raises:
            CallFailed: If it is over before.
        """
        if self._pause is not None:
            self._pause(seconds)
        elif seconds > 0:
            self._over.wait(min(seconds, self.left()))
        if self.over():
            raise CallFailed("no time left")


def together(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    at_once: int,
    deadline: Deadline,
    *,
    await_others: bool = False,
) -> list[Result | CallFailed]:
    """`work` on every item, several at a time.

    Args:
        work: May raise `CallFailed`, of which each concerns its own item; any other error ends all of them.
        items: What is worked on.
        at_once: How many at a time.
        deadline: After which what is missing has failed, and nothing is begun.
        await_others: Whether an error of ours waits for those under way; no other is begun.

    Returns:
        In the order of `items`, what came out or how it failed.
    """
    results: list[Any] = [CallFailed("no time left") for _ in items]
    pool = ThreadPoolExecutor(max(1, min(at_once, len(items))), "requests")
    seconds = deadline.left()
    try:
        places = {pool.submit(work, item): place for place, item in enumerate(items)}
        for done in as_completed(places, timeout=seconds if math.isfinite(seconds) else None):
            try:
                results[places[done]] = done.result()
            except CallFailed as failed:
                results[places[done]] = failed
    except UnirlError:
        deadline.stop()
        pool.shutdown(wait=await_others, cancel_futures=True)
        raise
    except TimeoutError:
        pass  # what is still under way ends by its own time-out, and nobody waits for it
    finally:
        deadline.stop()
        pool.shutdown(wait=False, cancel_futures=True)
    return results


def try_again(
    attempt: Callable[[], Result],
    *,
    over: Callable[[int, float], bool],
    sleep: Callable[[float], None],
    first: float,
    longest: float,
    extra: str,
) -> Result:
    """`attempt` until it gives something, or a failure that does not pass.

    Between two attempts a random time is waited, up to a bound that doubles (exponential backoff with full
    jitter), or as long as the failure says.

    Args:
        attempt: Raises `CallFailed`, of which those that are `passing` lead to another attempt.
        over: Of the attempts so far and the seconds of the next pause, whether that was the last one.
        sleep: Waits.
        first: The bound of the first pause, in seconds.
        longest: What the bound grows to.
        extra: The extra that installs the library, for the error where it is missing.

    Raises:
        CallFailed: The last one.
        MissingExtra: Without tenacity.

    Reference:
        https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/ (full jitter).
    """
    tenacity = needed("tenacity", extra)

    def wait(state: Any) -> float:
        most = min(longest, first * 2.0 ** min(state.attempt_number - 1, 30))
        failed: CallFailed = state.outcome.exception()
        return max(_random.uniform(0.0, most), failed.after)

    found: Result = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, CallFailed) and error.passing),
        wait=wait,
        stop=lambda state: over(state.attempt_number, state.upcoming_sleep),
        sleep=sleep,
        reraise=True,
    )(attempt)
    return found


# Addresses.


def checked_urls(urls: Any) -> tuple[str, ...]:
    """The URLs of a service, without a slash at their ends.

    Args:
        urls: One, or several.

    Raises:
        ConfigError: If there is none, one is none, one stands twice, or one carries a password.
    """
    if isinstance(urls, Mapping | bytes) or not urls:
        raise ConfigError(f"`urls` must hold at least one URL, got {urls!r}; try http://127.0.0.1:8191.")
    found = tuple(_checked(url) for url in ([urls] if isinstance(urls, str) else urls))
    if len(set(found)) < len(found):
        raise ConfigError(f"`urls` must be different replicas, got {list(found)}.")
    return found


def require_address(url: Any) -> None:
    """Refuse what is no address of a server. One with a password is not shown.

    Raises:
        ConfigError: Naming it.
    """
    if _has_password(url):
        raise ConfigError("`url` must hold no user and no password; try `token_env` or `headers_env`.")
    require("url", url, _parts(url) is not None, "like http://host:port/path")


def is_this_machine(url: str) -> bool:
    """Whether the host of `url` is a loopback address."""
    return is_loopback(urlsplit(url).hostname or "")


def is_loopback(host: str) -> bool:
    """Whether only this machine can call `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@lru_cache(maxsize=256)
def warn_of_plain_http(url: str, token_env: str) -> None:
    """Warn, once per URL, if a token goes over the network for all to read."""
    if url.startswith("http:") and not is_this_machine(url):
        logger.warning(
            "The token of %s is sent to %s without encryption; try https, or a tunnel, where others share "
            "the network.",
            token_env,
            url.partition("?")[0],  # what follows may be a secret
        )


def _checked(url: Any) -> str:
    if _has_password(url):
        raise ConfigError("`urls` must carry no password; try a token in an environment variable.")
    parts = _parts(url)
    if parts is None or not url.isprintable() or " " in url or parts.query or parts.fragment:
        raise ConfigError(
            f"`urls` must be like http://host:port, got {url!r:.80}; try http://127.0.0.1:8191."
        )
    return str(url).rstrip("/")


def _parts(url: Any) -> SplitResult | None:
    """Of the address of a server; None if it is none."""
    try:
        parts = urlsplit(url)
        sound = isinstance(url, str) and parts.scheme in ("http", "https") and bool(parts.hostname)
        return parts if sound and parts.port != 0 else None
    except (ValueError, AttributeError, TypeError):
        return None


def _has_password(url: Any) -> bool:
    """Whether a user or a password stands before the host, also of what is no address otherwise."""
    return isinstance(url, str) and "@" in re.split("[/?#]", url.split("//", 1)[-1], maxsplit=1)[0]
