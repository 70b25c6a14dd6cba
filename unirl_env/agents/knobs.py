"""An algorithm's own settings: a dataclass that its configuration names, or attributes that it sets."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from unirl_env.arguments.values import like_default
from unirl_env.errors import ConfigError
from unirl_env.settings.fields import check_values

__all__ = ["check_knobs", "check_plain_knobs", "knob_defaults", "knob_kinds"]


def knob_kinds(config_class: type) -> list[type]:
    """The dataclasses of knobs that an algorithm and those that it derives from declare, its own first.

    Raises:
        ConfigError: If something else is declared.
    """
    found: list[type] = []
    for cls in config_class.__mro__:
        kind = vars(cls).get("knobs")
        if kind is None:
            continue
        if not (inspect.isclass(kind) and dataclasses.is_dataclass(kind)):
            raise ConfigError(
                f"`{cls.__name__}.knobs` must be a dataclass, got {kind!r}; try `@dataclass` over its class."
            )
        if not any(issubclass(known, kind) for known in found):
            found.append(kind)
    return found


def knob_defaults(config_class: type) -> dict[str, Any]:
    """The declared knobs of an algorithm, with their defaults."""
    found: dict[str, Any] = {}
    for kind in reversed(knob_kinds(config_class)):
        group = kind()
        found |= {field.name: getattr(group, field.name) for field in dataclasses.fields(group)}
    return found


def check_knobs(knobs: Any, prefix: str = "") -> None:
    """Refuse knobs that cannot work; a dataclass without a `check` is held against its types.

    Args:
        knobs: The dataclass.
        prefix: What stands before their names in an error.

    Raises:
        ConfigError: Naming the knob, its value and the remedy.
    """
    check = getattr(knobs, "check", None)
    if callable(check):
        check(prefix)
    else:
        check_values(knobs, prefix)


def check_plain_knobs(config: Any) -> None:
    """Refuse an attribute of another kind than its default, where nothing else is said of it.

    Raises:
        ConfigError: Naming the knob, its value and what is wanted.
    """
    from unirl_env.agents.rllib_words import knob_names

    kind = type(config)
    plain = set(knob_names(kind)) - knob_defaults(kind).keys()
    default = kind() if plain else None
    for name in sorted(plain):
        like_default(name, getattr(config, name), getattr(default, name))
