"""A process of its own in which math-verify compares answers.

Computer algebra has no bound on its time: `9^{9^9}` is one operation that neither a thread nor an exception
can stop, and math-verify's own time limit needs signals, which only a main thread gets. So the comparisons
run in a child. There a signal interrupts what takes too long; where not even that helps, the system ends the
child, and another one is started for the next comparison.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import weakref
from multiprocessing.connection import Connection, Pipe
from typing import NamedTuple

__all__ = ["Comparison", "MathProcess"]

START_SECONDS = 120.0
GRACE_SECONDS = 2.0
"""Between the signal that interrupts a comparison and the one that ends the process."""


class Comparison(NamedTuple):
    """What came of two answers: whether each could be read, and whether they are equal."""

    expected: bool
    given: bool
    equal: bool


class MathProcess:
    """Compares answers in a child process, which is started on first use; may be shared by threads.

    Args:
        timeout: Seconds for a comparison, after which the given answer counts as one that cannot be read.
        memory: Bytes that the child may take.
    """

    def __init__(self, timeout: float = 5.0, memory: int = 2 << 30):
        self.timeout, self.memory = timeout, memory
        self._lock = threading.Lock()
        self._end: weakref.finalize | None = None
        self._connection: Connection | None = None

    def __reduce__(self) -> tuple:
        return MathProcess, (self.timeout, self.memory)

    def compare(self, expected: str, given: str) -> Comparison:
        """Whether two LaTeX expressions are equal.

        Raises:
            OSError: If the child cannot be started.
        """
        with self._lock:
            if self._connection is None:
                self._start()
            try:
                self._connection.send_bytes(json.dumps([expected, given]).encode())
                answer = self._received(self.timeout + 5 * GRACE_SECONDS)
            except BaseException:
                # An answer that nobody waited for must not be taken for the next one's.
                self._stop()
                raise
            if answer is None:
                self._stop()
                return Comparison(True, False, False)
            return Comparison(*answer)

    def _start(self) -> None:
        here, there = Pipe()
        options = {"timeout": self.timeout, "memory": self.memory, "path": sys.path}
        with there:
            # By its path and with -P: neither this package nor the modules beside this file are needed.
            child = subprocess.Popen(
                [sys.executable, "-P", __file__, str(there.fileno()), json.dumps(options)],
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self._connection = here
        self._end = weakref.finalize(self, _ended, child, here)
        if self._received(START_SECONDS) is None:
            self._stop()
            raise OSError("math-verify's process must start, got none; try `import math_verify` in Python.")

    def _received(self, seconds: float) -> list | None:
        """The child's next message; None if it ended or did not answer."""
        try:
            return json.loads(self._connection.recv_bytes()) if self._connection.poll(seconds) else None
        except (EOFError, ConnectionError):
            return None

    def _stop(self) -> None:
        if self._end is not None:
            self._end()
        self._connection = self._end = None


def _ended(child: subprocess.Popen, connection: Connection) -> None:
    connection.close()
    child.kill()
    child.wait()


def _serve(descriptor: int, timeout: float, memory: int) -> None:
    """The child: answer until the parent is gone."""
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, _interrupt)
    # The default action ends the process even in the middle of a multiplication, and without a parent.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM, signal.SIGPROF])
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _parsed("1")
    with Connection(descriptor) as connection, contextlib.suppress(EOFError, ConnectionError):
        connection.send_bytes(b"[]")
        while True:
            expected, given = json.loads(connection.recv_bytes())
            signal.setitimer(signal.ITIMER_PROF, timeout + GRACE_SECONDS)
            answer = _limited(expected, given, timeout)
            signal.setitimer(signal.ITIMER_PROF, 0)
            connection.send_bytes(json.dumps(answer).encode())


class _TimeUp(BaseException):
    """Passes through every `except Exception` of the algebra."""


def _interrupt(number: int, frame: object) -> None:
    raise _TimeUp


def _limited(expected: str, given: str, timeout: float) -> Comparison:
    try:
        signal.setitimer(signal.ITIMER_REAL, timeout)
        try:
            return _compared(expected, given)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _TimeUp:
        return Comparison(True, False, False)


def _compared(expected: str, given: str) -> Comparison:
    from math_verify import verify

    try:
        known, said = _parsed(expected), _parsed(given)
        equal = bool(known and said) and verify(known, said, timeout_seconds=None)
        return Comparison(bool(known), bool(said), bool(equal))
    except Exception:
        return Comparison(True, False, False)


def _parsed(expression: str) -> list:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    percent = "%" if expression.endswith("%") else ""
    return parse(
        f"${expression.removesuffix('%').removesuffix(chr(92))}${percent}",
        (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()),
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )


if __name__ == "__main__":
    settings = json.loads(sys.argv[2])
    sys.path[:] = settings["path"]
    _serve(int(sys.argv[1]), settings["timeout"], settings["memory"])
