"""Signals as a wish to stop: the iteration under way is finished, and nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

__all__ = ["EXIT_CODE", "Interrupt"]

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
