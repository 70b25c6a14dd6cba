"""JSON over HTTP with an engine's server, and what its silences and refusals mean."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlencode

from unirl_env.errors import EngineError, EngineLost
from unirl_env.errors.masks import remember
from unirl_env.http import CallFailed, Client

AT_ONCE = 256
"""Requests under way at the same time; servers batch them as they can."""
MOST_BYTES = 2**30
"""Of an answer, which holds the log-probabilities of thousands of tokens."""


class ServerClient:
    """Asks one server.

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
        self.name, self.url, self.key, self.last_words = name, url.rstrip("/"), key, last_words
        # Servers repeat keys in refusals and log their command lines, and errors repeat what they say.
        remember(key)
        # Rollouts are never meant to go through a proxy, and one would answer for a dead server.
        self._client = Client(
            [self.url],
            extra="sglang",
            seconds=seconds,
            headers=lambda: {"Authorization": f"Bearer {key}"} if key else {},
            most_bytes=MOST_BYTES,
            # No connection is used twice: servers close idle ones, which would then look like a loss.
            max_connections=AT_ONCE,
            max_keepalive_connections=0,
        )
        self._client.open()

    def healthy(self) -> bool:
        """Whether the server answers at all."""
        try:
            return self._client.send("GET", f"{self.url}/health", seconds=10.0).status == 200
        except CallFailed:
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
        content = None if body is None else json.dumps(body, allow_nan=False).encode()
        return self._call("POST", f"{path}?{urlencode(query)}" if query else path, content)

    def post_each(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Send every body at once; the answers in their order, once all are there."""
        with ThreadPoolExecutor(max_workers=min(AT_ONCE, max(1, len(bodies)))) as pool:
            return list(pool.map(lambda body: self.post(path, body), bodies))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _call(self, method: str, path: str, content: bytes | None = None) -> Any:
        try:
            reply = self._client.send(method, self.url + path, content)
        except CallFailed as failed:
            raise self._lost(str(failed), path) from failed
        if reply.status >= 500 and not self.healthy():
            raise self._lost(f"status {reply.status}: {reply.message[:2000]}", path)
        if reply.status >= 400:
            raise EngineError(
                f"{self.name} at {self.url} must accept {path}, got status {reply.status}: "
                f"{reply.message[:2000]}"
            )
        return reply.content

    def _lost(self, what: str, path: str) -> EngineLost:
        return EngineLost(
            f"{self.name} at {self.url} must answer {path}, got {what}. `restart` brings it back."
            f"{self.last_words()}"
        )
