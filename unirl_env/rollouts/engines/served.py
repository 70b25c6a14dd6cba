"""What engines on a server share: one that is started here and ends with us, or one that others run."""

from __future__ import annotations

import secrets
import sys
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from unirl_env.errors import EngineError
from unirl_env.rollouts.engines.disk import DiskEngine
from unirl_env.rollouts.engines.process import ServerProcess, free_port
from unirl_env.rollouts.engines.server_client import ServerClient


class ServedEngine(DiskEngine):
    """Talks to a server over HTTP.

    A server that is started here listens on the loopback interface alone, at a free port, with a key of its
    own, and ends with this process; `restart` ends what is left of it and starts it again. A server that is
    given by its `url` is never ended, and waited for; the folder for weights must then be one that it can
    read, too.

    Args:
        pretrained: The hub id or directory of the untrained model.
        eos_ids: Tokens that end a turn.
        url: A running server, `http://host:port`; None starts one.
        key: Its API key.
        start_seconds: How long a server may take to start, or to come back.
        answer_seconds: How long an answer may take before the server counts as lost.
        options: Further command line options of the server, `{"max-num-seqs": 64, "flag": True}`; they win
            over the ones chosen here.
        **settings: Those of `DiskEngine`.

    Raises:
        EngineError: If the server does not start, or cannot do what is needed.
    """

    NAME: str
    """What error messages call the server."""

    def __init__(
        self,
        pretrained: str,
        *,
        eos_ids: Sequence[int],
        url: str | None = None,
        key: str | None = None,
        start_seconds: float = 900.0,
        answer_seconds: float = 3600.0,
        options: Mapping[str, Any] | None = None,
        **settings: Any,
    ):
        super().__init__(pretrained, eos_ids=eos_ids, **settings)
        self.url, self._key = url, key
        self.start_seconds, self.answer_seconds = start_seconds, answer_seconds
        self.options = dict(options or {})
        self._process: ServerProcess | None = None
        self._server: Any = None
        self._start()

    # What a leaf answers.

    @abstractmethod
    def _command(self, port: int, key: str) -> list[str]:
        """The command line of a server on this port of the loopback interface."""

    @abstractmethod
    def _environment(self, key: str) -> tuple[dict[str, str], dict[str, str]]:
        """Environment variables that it needs, and such that are only defaults."""

    @abstractmethod
    def _greet(self) -> None:
        """Read the server's limits, and refuse one that cannot do what is needed."""

    # What they share.

    def _start(self) -> None:
        if self.url is not None:
            self._server = ServerClient(self.NAME, self.url, key=self._key, seconds=self.answer_seconds)
            self._await_others()
        else:
            port, key = free_port(), secrets.token_urlsafe(24)
            required, defaults = self._environment(key)
            command = [sys.executable, *self._command(port, key), *_as_flags(self.options)]
            self._process = ServerProcess(
                self.NAME, command, secret=key, required=required, defaults=defaults
            )
            self._server = ServerClient(
                self.NAME,
                f"http://127.0.0.1:{port}",
                key=key,
                seconds=self.answer_seconds,
                last_words=self._last_words,
            )
            self._process.wait_until(self._server.healthy, self.start_seconds)
        try:
            self._greet()
        except BaseException:
            self._stop()
            raise

    def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._process is not None:
            self._process.stop()
            self._process = None

    def _await_others(self) -> None:
        deadline = time.monotonic() + self.start_seconds
        while not self._server.healthy():
            if time.monotonic() > deadline:
                raise EngineError(
                    f"{self.NAME} must answer at {self.url}, got nothing within {self.start_seconds:.0f} s; "
                    "start it there, or leave `url` out to have one started here."
                )
            time.sleep(0.5)

    def _last_words(self) -> str:
        process = self._process
        return f" Its last lines are\n{process.last_lines()}" if process is not None else ""


def _as_flags(options: Mapping[str, Any]) -> list[str]:
    flags: list[str] = []
    for name, value in options.items():
        if value is not None and value is not False:
            flags += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return flags
