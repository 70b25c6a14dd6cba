"""What scorers say of their failures, gathered for whoever asked them, on top of what is logged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from unirl_env.types import FAULTS

__all__ = ["LONGEST", "hearing", "note"]

LONGEST = 500
"""Characters of one cause."""

_heard: ContextVar[dict[str, None] | None] = ContextVar("heard", default=None)


@contextmanager
def hearing() -> Iterator[dict[str, None]]:
    """Gather what is noted inside, each once and the last ones; also for whoever gathers around it."""
    outer = _heard.get()
    own: dict[str, None] = {}
    before = _heard.set(own)
    try:
        yield own
    finally:
        _heard.reset(before)
        if outer is not None:
            _keep(outer, *own)


def note(cause: str) -> None:
    """Say why scores are invalid; nothing where nobody gathers."""
    found = _heard.get()
    if found is not None:
        _keep(found, cause if len(cause) <= LONGEST else f"{cause[:LONGEST]}...")


def _keep(found: dict[str, None], *causes: str) -> None:
    for cause in causes:
        found.pop(cause, None)
        found[cause] = None
    while len(found) > FAULTS:
        del found[next(iter(found))]
