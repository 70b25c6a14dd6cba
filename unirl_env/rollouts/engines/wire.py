"""JSON over HTTP with an engine's server, and what its silences and refusals mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from unirl_env.errors import EngineError, EngineLost, MissingExtra
from unirl_env.errors.masks import hide, masked, remember

__all__ = ["Wire"]

AT_ONCE = 256
"""Requests under way at the same time; servers batch them as they can."""


class Wire:
    """A connection to one server.

    Args:
        name: What error messages call the server.
        url: Its address, `http://host:port`.
        key: Its API key, if it wants one.
        seconds: How long an answer may take.
        last_words: What is known of a server that does not answer, for the error.
    """

    def __init__(
        self,
        name: str,
        url: str,
        *,
        key: str | None = None,
        seconds: float = 3600.0,
        last_words: Callable[[], str] = str,
    ):
        try:
            import httpx
        except ImportError as error:
            raise MissingExtra("httpx", "sglang") from error
        self.name, self.url, self.key, self.last_words = name, url.rstrip("/"), key, last_words
        # Servers repeat keys in refusals and log their command lines, and errors repeat what they say.
        remember(key)
        masked({"url": self.url})
        self._client = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(seconds, connect=10.0),
            # No connection is used twice: servers close idle ones, which would then look like a loss.
            limits=httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=0),
            # Rollouts are never meant to go through a proxy, and one would answer for a dead server.
            trust_env=False,
        )

    def healthy(self) -> bool:
        """Whether the server answers at all."""
        import httpx

        try:
            return self._client.get("/health", timeout=10.0).status_code == 200
        except httpx.TransportError:
            return False

    def get(self, path: str) -> Any:
        """The JSON at `path`; see `post` for what it raises."""
        return self._call("GET", path)

    def post(self, path: str, body: Mapping[str, Any] | None = None, **query: Any) -> Any:
        """Send `body` as JSON; the JSON that comes back, or the text if it is none.

        Raises:
            EngineError: If the server refuses, with its words.
            EngineLost: If it does not answer, or ended while it did.
        """
        return self._call("POST", path, json=body, params=query or None)

    def post_each(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Send every body at once; the answers in their order, once all are there."""
        with ThreadPoolExecutor(max_workers=min(AT_ONCE, max(1, len(bodies)))) as pool:
            return list(pool.map(lambda body: self.post(path, body), bodies))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        import httpx

        try:
            response = self._client.request(method, path, **arguments)
        except httpx.TransportError as error:
            raise self._lost(f"{type(error).__name__}: {error}", path) from error
        if response.status_code >= 500 and not self.healthy():
            raise self._lost(f"status {response.status_code}: {_words(response)}", path)
        if response.status_code >= 400:
            raise EngineError(
                f"{self.name} at {self.url} must accept {path}, got status {response.status_code}: "
                f"{_words(response)}"
            )
        return _content(response)

    def _lost(self, what: str, path: str) -> EngineLost:
        return EngineLost(
            f"{self.name} at {self.url} must answer {path}, got {what}. `restart` brings it back."
            f"{self.last_words()}"
        )


def _content(response: Any) -> Any:
    try:
        return response.json()
    except ValueError:
        return response.text


def _words(response: Any) -> str:
    """What a server says of an error: servers put it under several names, in an object or as a text."""
    content = _content(response)
    for name in ("error", "message", "detail"):
        if isinstance(content, dict) and content.get(name):
            content = content[name]
    return hide(str(content))[:2000]
