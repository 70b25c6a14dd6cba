"""Ctrl-C and SIGTERM as a wish to stop: the iteration under way is finished, and nothing is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType, TracebackType

__all__ = ["EXIT_CODE", "Interrupt"]

EXIT_CODE = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """A context in which the first signal sets `requested` and the second one ends the process at once.

    Args:
        announce: Called with a sentence for the person at the keyboard.
    """

    def __init__(self, announce: Callable[[str], None] = print):
        self.requested = False
        self.announce = announce
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupt:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            # No clean-up: whoever asks twice wants out now, and what is on the disk is whole at any moment.
            os._exit(EXIT_CODE)
        self.requested = True
        self.announce(
            f"{signal.Signals(number).name}: finishing this step, then saving. Once more quits at once."
        )
