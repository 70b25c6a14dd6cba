"""Refusing settings by their names."""

from __future__ import annotations

import math
from typing import Any

from unirl_env.errors import ConfigError

__all__ = ["is_number", "is_whole", "require", "require_number"]


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number; a truth value is none."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def is_whole(value: Any) -> bool:
    """Whether `value` is a whole number; a truth value is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def require(name: str, value: Any, fits: bool, wanted: str) -> None:
    """Refuse a setting that does not fit.

    Raises:
        ConfigError: Naming it, and what is wanted.
    """
    if not fits:
        raise ConfigError(f"`{name}` must be {wanted}, got {value!r}.")


def require_number(name: str, value: Any, least: float, *, whole: bool = False, unit: str = "") -> None:
    """Refuse what is no finite number of at least `least`, or, if that is 0 and there is a unit, above it.

    Raises:
        ConfigError: Naming it.
    """
    number = is_number(value) and (is_whole(value) or not whole)
    above = bool(unit) and least == 0
    fits = number and (value > least if above else value >= least)
    wanted = f"positive {unit}" if above else f"{'a whole number of ' if whole else ''}at least {least:g}"
    require(name, value, fits, wanted)
