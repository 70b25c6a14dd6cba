"""A process that serves until it is told to end, and then finishes what it has taken."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from unirl_env.errors import ConfigError
from unirl_env.service.connection_guard import Guard, guarded, room_for

__all__ = ["STOPPED_AT_ONCE", "Server", "bound_socket", "serve"]

STOPPED_AT_ONCE = 130
ANSWERING_SECONDS = 5
"""How long the answers may take to be sent after all of them are there."""


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
