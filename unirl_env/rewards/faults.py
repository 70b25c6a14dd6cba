"""Why scores are invalid: gathered for whoever asked the scorers, and said in the log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from unirl_env.types import FAULTS, Prompt

__all__ = ["LONGEST", "PromptFaults", "gathered_faults", "note_fault"]

logger = logging.getLogger(__name__)

LONGEST = 500
"""Characters of one cause."""
REMEMBERED = 10_000
"""Warnings; a service that runs for months forgets the first ones, and may say them again."""

_gathered: ContextVar[dict[str, None] | None] = ContextVar("faults", default=None)


@contextmanager
def gathered_faults() -> Iterator[dict[str, None]]:
    """Gather what is noted inside, each once and the last ones; also for whoever gathers around it."""
    outer = _gathered.get()
    own: dict[str, None] = {}
    before = _gathered.set(own)
    try:
        yield own
    finally:
        _gathered.reset(before)
        if outer is not None:
            _keep(outer, *own)


def note_fault(cause: str) -> None:
    """Say why scores are invalid; nothing where nobody gathers."""
    found = _gathered.get()
    if found is not None:
        _keep(found, cause if len(cause) <= LONGEST else f"{cause[:LONGEST]}...")


class PromptFaults:
    """Warnings of prompts that cannot be judged, which name the prompt and the cause, each of them once.

    Args:
        scorer: The name of the scorer that cannot judge.
    """

    def __init__(self, scorer: str):
        self.scorer = scorer
        self._logged: dict[tuple[str, str], None] = {}

    def __call__(self, prompt: Prompt, why: str) -> None:
        """Say that samples of `prompt` are invalid, and why."""
        note_fault(f"{self.scorer}: it cannot judge the prompt {prompt.id[:80]!r}: {why}")
        known = (prompt.id[:80], why[:80])
        if known in self._logged:
            return
        if len(self._logged) >= REMEMBERED:
            del self._logged[next(iter(self._logged))]
        self._logged[known] = None
        logger.warning("Reward `%s` cannot judge the prompt %r: %s.", self.scorer, known[0], why)


def _keep(found: dict[str, None], *causes: str) -> None:
    for cause in causes:
        found.pop(cause, None)
        found[cause] = None
    while len(found) > FAULTS:
        del found[next(iter(found))]
