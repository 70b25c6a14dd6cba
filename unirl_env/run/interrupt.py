"""What ends a run before its time: signals as a wish to stop, and a watchdog over what hangs.

After a signal the iteration under way is finished, and nothing is lost.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType

EXIT_CODE = 130
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Ctrl-C; what schedulers and `kill` send; and what comes when a terminal or a connection is closed."""


class Interrupt:
    """A context in which the first signal sets `requested` and the second one ends the process at once.

    A signal that was ignored before stays so: `nohup` is meant. Outside the main thread, where Python takes
    no signals, nothing is heard.

    Args:
        announce: Called with a sentence for the person at the keyboard.

    Attributes:
        requested: Whether somebody wants the run to stop.
        expired: Why what is under way was broken off, if it was.
        breaking_off: Whether the main thread has still to hear of it.
    """

    def __init__(self, announce: Callable[[str], None] = print):
        self.requested = False
        self.expired: str | None = None
        self.breaking_off = False
        self.announce = announce
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def expire(self, reason: str) -> bool:
        """Break off what the main thread does, from another thread, by a `KeyboardInterrupt`.

        It is the one exception that Ray lets through while it waits, and that nobody takes for an error of a
        single sample.

        Returns:
            Whether the main thread will hear it.
        """
        if signal.SIGINT not in self._before:
            return False
        self.expired = reason
        self.breaking_off = True
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return True

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.breaking_off and number == signal.SIGINT:
            self.breaking_off = False
            raise KeyboardInterrupt
        if self.requested:
            # No clean-up: whoever asks twice wants out now, and what is on the disk is whole at any moment.
            os._exit(EXIT_CODE)
        self.requested = True
        self.announce(
            f"{signal.Signals(number).name}: finishing this step, then saving. Once more quits at once."
        )


LOOK_EVERY = 1.0
"""Seconds between two looks."""
STOPPED_FOR = 60.0
"""Seconds that a runner or learner may stand still by SIGSTOP; a shorter pause is somebody's wish."""
GRACE = 60.0
"""Seconds in which the main thread must hear that it is broken off; outside Python, it never does."""
HUNG = 1
"""The exit code of a process that could only be ended."""


class Watchdog:
    """Breaks off what takes too long, and names what stands still.

    Ray's health checks ask a node, not its processes, and a process under SIGSTOP counts as alive: a call to
    it waits for ever, and so does a call to a scorer that hangs.

    Args:
        interrupt: Breaks off the main thread.
        timeout_s: Seconds that one piece of work may take; None for any time.
    """

    def __init__(self, interrupt: Interrupt, timeout_s: float | None = None):
        self.interrupt, self.timeout_s = interrupt, timeout_s
        self.processes: Mapping[str, int] = {}
        self._what, self._spent = "", 0.0
        self._still: dict[str, float] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()

    @contextmanager
    def over(self, what: str) -> Iterator[None]:
        """A piece of work, in words that follow "during"."""
        self._spent, self._what = 0.0, what
        try:
            yield
        finally:
            self._what = ""

    def end(self, still: bool = False) -> None:
        """End the processes, or only those that stand still: whoever waits for one would wait for ever."""
        for pid in self.processes.values():
            if not still or _is_stopped(pid):
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._done.wait(LOOK_EVERY):
            now = time.monotonic()
            # A machine that slept, or a whole job that was stopped and went on, has not hung.
            tick, last = min(now - last, 2 * LOOK_EVERY), now
            reason = self._look(tick)
            if reason is not None:
                self._break_off(reason)

    def _look(self, tick: float) -> str | None:
        if not self._what:
            return None
        self._spent += tick
        for name, pid in self.processes.items():
            self._still[name] = self._still.get(name, 0.0) + tick if _is_stopped(pid) else 0.0
            if self._still[name] >= STOPPED_FOR:
                self._still[name] = 0.0
                return (
                    f"{name} must answer during {self._what}, got {STOPPED_FOR:.0f} s in which its process "
                    f"{pid} stood still (SIGSTOP); try `kill -CONT {pid}` sooner, or look who stops it"
                )
        if self.timeout_s is not None and self._spent >= self.timeout_s:
            where = f"; the run's own process is at {_place()}"
            others = ", ".join(f"{name} (process {pid})" for name, pid in self.processes.items())
            also = f", besides it there are {others}" if others else ""
            return (
                f"`rollout.timeout_s` must be longer than any iteration and evaluation, got "
                f"{self.timeout_s:g}, which passed during {self._what}{where}{also}; "
                f"try looking why that does not come back (a scorer without a time limit?), or a "
                f"larger `rollout.timeout_s`"
            )
        return None

    def _break_off(self, reason: str) -> None:
        what, self._what = self._what, ""
        if not self.interrupt.expire(reason):
            return
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline:
            if self._done.wait(LOOK_EVERY) or self._what != "" or not self.interrupt.breaking_off:
                return
        sys.stderr.write(f"{reason}. {what} could not be broken off; the newest checkpoint counts.\n")
        sys.stderr.flush()
        os._exit(HUNG)


def _is_stopped(pid: int) -> bool:
    """Whether a process of this machine stands still; False where the system does not tell."""
    try:
        # The name in brackets may hold anything, brackets as well.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (OSError, IndexError):
        return False


def _place() -> str:
    """Where the main thread is."""
    frame = sys._current_frames().get(threading.main_thread().ident)
    if frame is None:
        return "an unknown place"
    last = traceback.extract_stack(frame)[-1]
    return f"{last.filename}, line {last.lineno} ({last.name})"
