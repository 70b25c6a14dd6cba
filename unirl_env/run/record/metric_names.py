"""Names of metrics: what belongs to one of several phases begins with its name, as in `text/kl`."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["of_phases", "phases_of", "shared_names"]

USUAL = ("text", "image")
NO_PHASES = ("reward", "reward_std", "reward_failed", "reward_absent", "heldout", "heldout_std", "seconds")
"""What has parts of any name, `loss` included."""


def phases_of(known: Iterable[str]) -> list[str]:
    """The phases of which there are numbers of their own: whatever has a loss, and the usual ones."""
    parts = [name.partition("/") for name in known]
    found = {phase for phase, _, last in parts if last == "loss" or (last and phase in USUAL)}
    others = dict.fromkeys(phase for phase, _, _ in parts if phase in found and phase not in NO_PHASES)
    return [*(phase for phase in USUAL if phase in others), *(p for p in others if p not in USUAL)]


def of_phases(name: str, known: Iterable[str]) -> dict[str, str]:
    """Where a quantity is found among the `known` names, by phase; by "" where it belongs to no single one.

    Returns:
        `{"": "kl"}`, `{"text": "text/kl", "image": "image/kl"}`, or nothing.
    """
    known = list(known)
    if name in known:
        return {"": name}
    return {phase: f"{phase}/{name}" for phase in phases_of(known) if f"{phase}/{name}" in known}


def shared_names(known: Iterable[str]) -> list[str]:
    """The quantities that every phase has, in the order in which they are known."""
    known = list(known)
    phases = phases_of(known)
    if len(phases) < 2:
        return []
    names = (name.removeprefix(f"{phases[0]}/") for name in known if name.startswith(f"{phases[0]}/"))
    return [name for name in names if all(f"{phase}/{name}" in known for phase in phases[1:])]
