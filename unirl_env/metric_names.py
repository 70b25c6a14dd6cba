"""Names of metrics: what belongs to one of several phases begins with its name, as in `text/kl`."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["PHASES", "of_phases", "shared_names"]

PHASES = ("text", "image")


def of_phases(name: str, known: Iterable[str]) -> dict[str, str]:
    """Where a quantity is found among the `known` names, by phase; by "" where it belongs to no single one.

    Returns:
        `{"": "kl"}`, `{"text": "text/kl", "image": "image/kl"}`, or nothing.
    """
    known = set(known)
    if name in known:
        return {"": name}
    return {phase: f"{phase}/{name}" for phase in PHASES if f"{phase}/{name}" in known}


def shared_names(known: Iterable[str]) -> list[str]:
    """The quantities that every phase has, in the order in which they are known."""
    known = list(known)
    first, *others = PHASES
    names = (name.removeprefix(f"{first}/") for name in known if name.startswith(f"{first}/"))
    return [name for name in names if all(f"{phase}/{name}" in known for phase in others)]
