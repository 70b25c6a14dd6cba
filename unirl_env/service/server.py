"""A process that serves until it is told to end, and then finishes what it has taken.

Connections that do not come to the point are closed, and there are no more of them than can be served: a
server that waits for whoever is connected is stopped by a few hundred clients that say nothing. Here a
connection has a time for the head of a request, one for its body and one for taking the answer; how long a
scorer takes is nobody's fault and is not counted. Where all places are taken, whoever has been silent longest
gives way to whoever comes.
"""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from unirl_env.errors import ConfigError
from unirl_env.service.error_replies import RETRY_SECONDS, error_reply

MOST_HEAD = 64 * 2**10
"""Bytes of the head of a request, or of what follows its body; the parser itself would take any number."""
SPARE_FILES = 64
"""Open files that are no connections: models, logs, the other ends of our own questions."""
HEAD, BODY, ANSWER = "head", "body", "answer"
STOPPED_AT_ONCE = 130
ANSWERING_SECONDS = 5
"""How long the answers may take to be sent after all of them are there."""


@dataclass
class _Watched:
    """A connection: what it is at, since when, and how much of an answer it has not taken."""

    phase: str
    began: float
    unsent: int = 0
    stalled: float | None = None


class Guard:
    """Closes connections that take too long.

    Args:
        head_seconds: How long a connection may take from its opening, or from the end of the last answer, to
            the end of the next request's head.
        body_seconds: How long a body may take to arrive, and an answer to be taken without any progress.
        most: The most connections.
        clock: Seconds; tests have their own.

    Attributes:
        closed: How many were closed, by the reason: `"head"`, `"body"`, `"answer"`, `"full"`.
    """

    def __init__(
        self,
        *,
        head_seconds: float,
        body_seconds: float,
        most: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.head_seconds, self.body_seconds, self.most = head_seconds, body_seconds, most
        self.closed = {HEAD: 0, BODY: 0, ANSWER: 0, "full": 0}
        self._clock = clock
        self._watched: dict[Any, _Watched] = {}

    def __len__(self) -> int:
        return len(self._watched)

    def enter(self, connection: Any) -> None:
        """A connection has been opened; where there is no place for it, the longest silent one is closed."""
        if len(self._watched) >= self.most:
            silent = [one for one, seen in self._watched.items() if seen.phase == HEAD]
            self.closed["full"] += 1
            if not silent:
                _refuse(connection, 503, "busy", "All connections are in use; try again later.")
                return
            oldest = min(silent, key=lambda one: self._watched[one].began)
            del self._watched[oldest]
            oldest.transport.abort()
        self._watched[connection] = _Watched(HEAD, self._clock())

    def turn(self, connection: Any, phase: str) -> None:
        """A connection has come to another phase of a request."""
        seen = self._watched.get(connection)
        if seen is not None:
            seen.phase, seen.began = phase, self._clock()

    def leave(self, connection: Any) -> None:
        """A connection is gone."""
        self._watched.pop(connection, None)

    def sweep(self) -> None:
        """Close what is late; to be called several times a second."""
        now = self._clock()
        for connection, seen in list(self._watched.items()):
            why = self._late(connection.transport, seen, now)
            if why is None:
                continue
            self.closed[why] += 1
            del self._watched[connection]
            if why == HEAD and connection.begun:
                _refuse(
                    connection,
                    408,
                    "too_slow",
                    f"The head of a request must arrive within {self.head_seconds:g} seconds.",
                )
            elif why == HEAD:
                connection.transport.close()
            else:
                connection.transport.abort()

    def _late(self, transport: Any, seen: _Watched, now: float) -> str | None:
        unsent = transport.get_write_buffer_size()
        if not unsent or unsent < seen.unsent:
            seen.stalled = None
        seen.unsent = unsent
        if unsent:
            seen.stalled = now if seen.stalled is None else seen.stalled
            return ANSWER if now - seen.stalled > self.body_seconds else None
        most = {HEAD: self.head_seconds, BODY: self.body_seconds}.get(seen.phase)
        return seen.phase if most is not None and now - seen.began > most else None


def guarded(guard: Guard) -> type[HttpToolsProtocol]:
    """Uvicorn's protocol under `guard`, with heads of bounded size."""

    class Guarded(HttpToolsProtocol):
        begun = False  # whether a part of a head has come
        _marks = _stray = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            guard.enter(self)

        def connection_lost(self, exc: Exception | None) -> None:
            guard.leave(self)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            before = self._marks
            super().data_received(data)
            # What neither ends a head nor brings a piece of a body belongs to headers, or to what stands
            # between the chunks of a body, and is kept by the parser.
            self._stray = self._stray + len(data) if self._marks == before else 0
            if self._stray > MOST_HEAD and not self.transport.is_closing():
                words = f"The head of a request must have at most {MOST_HEAD} bytes; try shorter headers."
                _refuse(self, 431, "too_large", words)

        def on_message_begin(self) -> None:
            self.begun = True
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self.begun, self._marks = False, self._marks + 1
            guard.turn(self, BODY)
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._marks += 1
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._marks += 1
            guard.turn(self, HEAD if self.cycle.response_complete else ANSWER)
            super().on_message_complete()

        def on_response_complete(self) -> None:
            # A body that still comes in after an early answer keeps its own time.
            if not self.cycle.more_body:
                guard.turn(self, HEAD)
            super().on_response_complete()

    return Guarded


def room_for(connections: int) -> int:
    """How many of the wanted connections this process may have open; its limit is raised where it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    most = connections if soft == resource.RLIM_INFINITY else min(connections, soft - SPARE_FILES)
    return max(1, most)


def _refuse(connection: Any, status: int, code: str, words: str) -> None:
    """Answer without asking the application, and close."""
    headers = {"Connection": "close"} | ({"Retry-After": str(RETRY_SECONDS)} if status == 503 else {})
    reply = error_reply(status, code, words, headers)
    head = "".join(f"{name.decode()}: {value.decode()}\r\n" for name, value in reply.raw_headers)
    connection.transport.write(f"HTTP/1.1 {status} Refused\r\n{head}\r\n".encode() + reply.body)
    connection.transport.close()


class Server(uvicorn.Server):
    """Ends in order: the first signal refuses new work and finishes the old, the second one leaves at once.

    Args:
        app: What `create_app` made.
        drain_seconds: How long the old work may take.
        announce: Called with a sentence for the person at the keyboard.
        ready: Called when the port is open.
    """

    def __init__(
        self,
        app: FastAPI,
        drain_seconds: float,
        announce: Callable[[str], None] = print,
        ready: Callable[[], None] = lambda: None,
    ):
        settings = app.state.service.settings
        self.guard = Guard(
            head_seconds=settings.head_seconds,
            body_seconds=settings.read_seconds + ANSWERING_SECONDS,  # the app itself says 408 before
            most=room_for(settings.max_connections),
        )
        super().__init__(
            uvicorn.Config(
                app,
                http=guarded(self.guard),
                ws="none",  # an upgraded connection would leave the guard behind
                log_config=None,
                access_log=False,  # the metrics count requests
                server_header=False,
                timeout_graceful_shutdown=ANSWERING_SECONDS,
            )
        )
        self.forced = False
        self.service = app.state.service
        self._drain_seconds = drain_seconds
        self._announce, self._ready = announce, ready
        self._end: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the port."""
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal as a wish to end; it is not raised again, so that the exit code is 0."""
        if self._end is None:
            self._end = time.monotonic() + self._drain_seconds
            self.service.drain()
            self._announce(
                f"Finishing {self.service.in_flight} requests within {self._drain_seconds:g} seconds. Once "
                "more quits at once."
            )
        else:
            self.forced = self.force_exit = self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Several times a second: who is late, and whether it is time to end."""
        self.guard.sweep()
        if self._end is not None and not self.should_exit:
            late = time.monotonic() >= self._end
            if late and self.service.in_flight:
                self._announce(f"{self.service.in_flight} requests are not finished; they are told so.")
                self.service.abandon()
            self.should_exit = late or not self.service.in_flight
        return await super().on_tick(counter)


def bound_socket(host: str, port: int) -> socket.socket:
    """The port, reserved and not open yet: who calls before the rewards are loaded is refused.

    Raises:
        ConfigError: If it is taken, or `host` is not an address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(address)
        except OSError:
            found.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"`host` and `port` must be an address of this machine and a free port, got {host!r} and {port}: "
            f"{error.strerror or error}; try another port, or port=0 for any free one."
        ) from error
    return found


def serve(server: Server, opened: socket.socket) -> int:
    """Serve until a signal; the exit code."""
    try:
        server.run(sockets=[opened])
    finally:
        server.service.close()
    return STOPPED_AT_ONCE if server.forced else 0
