"""A process of its own in which math-verify compares answers.

Computer algebra has no bound on its time: `9^{9^9}` is one operation that neither a thread nor an exception
can stop, and signals reach only a main thread. So the comparisons run in a child (`algebra.py`), where a
signal interrupts what takes more than its processor time; where not even that helps, the system ends the
worker. What no answer is to blame for (the child was killed, it starves) is no judgement: it is tried again,
and then there is none.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import weakref
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

PROGRAM = Path(__file__).with_name("algebra.py")
START_SECONDS = 300.0
"""Imports take seconds, on a busy machine minutes."""
ATTEMPTS = 3
PATIENCE = 100.0
"""By the clock, a comparison may take so many times its processor time, and a minute."""


class Comparison(NamedTuple):
    """What came of two answers: whether each could be read, and whether they are equal."""

    expected: bool
    given: bool
    equal: bool


class MathProcess:
    """Compares answers in a child process, which is started on first use; may be shared by threads.

    Args:
        timeout: Seconds of processor time for an answer, after which it counts as one that cannot be read.
        memory: Bytes that the child may take.
    """

    def __init__(self, timeout: float = 1.0, memory: int = 2 << 30):
        self.timeout, self.memory = timeout, memory
        self._lock = threading.Lock()
        self._count = 0
        self._end: weakref.finalize[..., MathProcess] | None = None
        self._connection: Connection | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return MathProcess, (self.timeout, self.memory)

    def compare(self, expected: str, given: str) -> Comparison | None:
        """Whether two LaTeX expressions are equal; None if the child failed over and over.

        Raises:
            OSError: If the child cannot be started.
        """
        with self._lock:
            for attempt in range(1, ATTEMPTS + 1):
                answer = self._attempt(expected, given)
                if answer is not None:
                    return Comparison(*answer)
                logger.warning("math-verify's process ended, attempt %d of %d.", attempt, ATTEMPTS)
            return None

    def _attempt(self, expected: str, given: str) -> list[bool] | None:
        if self._connection is None:
            self._start()
        assert self._connection is not None
        try:
            self._count += 1
            self._connection.send_bytes(json.dumps([self._count, expected, given]).encode())
            while reply := self._received(60.0 + PATIENCE * self.timeout):
                number, answer = reply
                # Without a number, it is about a worker that ended, and the next one is there already.
                if number in (self._count, None):
                    return answer
        except ConnectionError:
            pass
        except BaseException:
            # An answer that nobody waited for must not be taken for the next one's.
            self._stop()
            raise
        self._stop()
        return None

    def _start(self) -> None:
        here, there = Pipe()
        options = {"timeout": self.timeout, "memory": self.memory, "path": sys.path}
        with there:
            # By its path and with -P: neither this package nor the modules beside this file are needed.
            child = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM), str(there.fileno()), json.dumps(options)],
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._connection = here
        self._end = weakref.finalize(self, _ended, child, here)
        if self._received(START_SECONDS) is None:
            self._stop()
            raise OSError("math-verify's process must start, got none; try `import math_verify` in Python.")

    def _received(self, seconds: float) -> list[Any] | None:
        """The child's next message; None if it ended, failed or did not answer."""
        assert self._connection is not None
        try:
            return json.loads(self._connection.recv_bytes()) if self._connection.poll(seconds) else None
        except (EOFError, ConnectionError):
            return None

    def _stop(self) -> None:
        if self._end is not None:
            self._end()
        self._connection = self._end = None


def _ended(child: subprocess.Popen[bytes], connection: Connection) -> None:
    connection.close()
    # The child and its worker are a group of their own.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
