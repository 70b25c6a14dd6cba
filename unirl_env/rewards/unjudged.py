"""Saying why a sample cannot be judged, once."""

from __future__ import annotations

import logging

from unirl_env.rewards.heard import note
from unirl_env.types import Prompt

__all__ = ["Unjudged"]

logger = logging.getLogger(__name__)

REMEMBERED = 10_000
"""Warnings; a service that runs for months forgets the first ones, and may say them again."""


class Unjudged:
    """Warnings that name the prompt and the cause, each of them once.

    Args:
        scorer: The name of the scorer that cannot judge.
    """

    def __init__(self, scorer: str):
        self.scorer = scorer
        self._said: dict[tuple[str, str], None] = {}

    def __call__(self, prompt: Prompt, why: str) -> None:
        """Say that samples of `prompt` are invalid, and why."""
        note(f"{self.scorer}: it cannot judge the prompt {prompt.id[:80]!r}: {why}")
        known = (prompt.id[:80], why[:80])
        if known in self._said:
            return
        if len(self._said) >= REMEMBERED:
            del self._said[next(iter(self._said))]
        self._said[known] = None
        logger.warning("Reward `%s` cannot judge the prompt %r: %s.", self.scorer, known[0], why)
