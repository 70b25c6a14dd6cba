"""What people type as `setting=value`, in the words of Hydra."""

from __future__ import annotations

import dataclasses
from typing import Any, get_type_hints

from unirl_env.config import RunConfig

__all__ = ["WHOLE", "for_hydra", "respelled"]

SPELLINGS = {"rewards": "reward", "rewards.async": "reward.overlap", "reward.async": "reward.overlap"}
"""What people type, to the setting's own name; `async` is a word of Python, so no setting is called so."""


def _types() -> dict[str, Any]:
    """The type of every setting that is not a section."""
    found: dict[str, Any] = {}
    for name, kind in get_type_hints(RunConfig).items():
        inner = get_type_hints(kind) if dataclasses.is_dataclass(kind) else None
        found |= {name: kind} if inner is None else {f"{name}.{key}": own for key, own in inner.items()}
    return found


WHOLE = frozenset(name for name, kind in _types().items() if kind is Any)
"""Settings that are a word or a mapping, such as a reward: a new one takes the place of the old one."""

OPEN = WHOLE | {name for name, kind in _types().items() if str(kind).startswith("dict[")}
"""Settings below which any name may stand."""


def respelled(item: str) -> str:
    """An override with the name of its setting."""
    name, equals, value = item.partition("=")
    if name in SPELLINGS:
        return f"{SPELLINGS[name]}{equals}{value}"
    first, dot, rest = name.partition(".")
    return f"{SPELLINGS.get(first, first)}{dot}{rest}{equals}{value}"


def for_hydra(item: str) -> list[str]:
    """The overrides that give an override its meaning.

    Hydra merges a mapping into the one that is there, and knows no new names without `++`.
    """
    item = respelled(item)
    name, _, value = item.partition("=")
    if name in WHOLE and value.lstrip().startswith("{"):
        return [f"{name}=null", f"++{item}"]
    return [f"++{item}" if name.startswith(tuple(f"{setting}." for setting in OPEN)) else item]
