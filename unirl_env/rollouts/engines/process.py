"""A server process of our own: started on this machine, watched, and never left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from unirl_env.errors import EngineError
from unirl_env.errors.masks import remember

LAST_LINES = 25
"""Lines of the log that an error shows."""
GRACE = 10.0
"""Seconds a server has to end by itself."""


class ServerProcess:
    """A command in a process group of its own, its output in a file.

    The whole group ends with `stop`, when this object is collected, at the interpreter's end, and, through
    `leash`, even if this process is killed.

    Args:
        name: What error messages call it.
        command: The command line.
        secret: Part of the command line that errors do not show.
        required: Environment variables that it needs.
        defaults: Environment variables that are set unless the environment has them already.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        secret: str = "",
        required: Mapping[str, str] | None = None,
        defaults: Mapping[str, str] | None = None,
    ):
        remember(secret)
        self.name, self.command = name, [part for part in command if not secret or secret not in part]
        file, log = tempfile.mkstemp(prefix=f"unirl-{name.lower()}-", suffix=".log")
        self.log = Path(log)
        leash = str(Path(__file__).with_name("leash.py"))
        with os.fdopen(file, "wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, leash, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**(defaults or {}), **os.environ, **(required or {})},
                start_new_session=True,
            )
        self._finalizer = weakref.finalize(self, _end, self._process, self.log)

    @property
    def running(self) -> bool:
        """Whether the command has not ended."""
        return self._process.poll() is None

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until `ready()`.

        Raises:
            EngineError: If the command ends before that, or takes longer than `seconds`, with its last lines.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            if not self.running:
                problem = f"must start, got exit status {self._process.returncode}"
            elif time.monotonic() > deadline:
                problem = f"must be ready within {seconds:.0f} s, got no answer; try a longer `start_seconds`"
            else:
                time.sleep(0.5)
                continue
            tail = self.last_lines()
            self.stop()
            raise EngineError(
                f"{self.name} {problem}. Check the model, the memory of the device and the `options`; the "
                f"command was\n  {' '.join(self.command)}\nand its last lines are\n{tail}"
            )

    def last_lines(self) -> str:
        """The end of what the command wrote."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return "  (no log)"
        return "\n".join(f"  {line}" for line in lines[-LAST_LINES:])

    def stop(self) -> None:
        """End the command and everything it started, and remove its log."""
        self._finalizer()


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _end(process: subprocess.Popen, log: Path) -> None:
    for force in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, force)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + GRACE
        while _alive(process) and time.monotonic() < deadline:
            time.sleep(0.05)
    process.wait()
    log.unlink(missing_ok=True)


def _alive(process: subprocess.Popen) -> bool:
    """Whether anything of the group is left."""
    process.poll()  # a leader whose status nobody takes would count
    try:
        os.killpg(process.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
