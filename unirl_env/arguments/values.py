"""What an argument or a setting must be: numbers, truth values and names, refused by their own names.

A text for a truth value, a truth value for a number or a fraction for a count would all be taken by Python
without a word; here is the one place that tells them apart. Nothing imports more than the standard library.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import operator
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from unirl_env.errors import ConfigError


def is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` is a finite number; a truth value is none."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether `value` is a whole number; a truth value is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def require(name: str, value: Any, fits: object, wanted: str, hint: str = "") -> None:
    """Refuse a setting that does not fit.

    Raises:
        ConfigError: Naming it, what is wanted, and what to try.
    """
    if not fits:
        raise ConfigError(f"`{name}` must be {wanted}, got {value!r}{'; ' if hint else ''}{hint}.")


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


def as_whole(value: Any) -> int | None:
    """A whole number of any integer type, 0-d arrays and tensors too, as Python's own; None if it is none."""
    boolean = isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))
    if boolean or getattr(value, "ndim", 0) != 0:
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def whole(name: str, value: Any, least: int | None = None, most: int | None = None, hint: str = "") -> int:
    """`value` as Python's own whole number, if it is one of any integer type.

    Args:
        name: What an error calls it.
        value: What was given; truth values, texts and floats such as 8.0 are refused.
        least: The smallest that is accepted.
        most: The largest.
        hint: What to try instead, for the message: `"try 10"`.

    Raises:
        ConfigError: Naming it.
    """
    found = as_whole(value)
    if found is None:
        wanted = "a whole number"
    elif least is not None and found < least:
        wanted = f"at least {least}"
    elif most is not None and found > most:
        wanted = f"at most {most}"
    else:
        return found
    raise ConfigError(f"`{name}` must be {wanted}, got {value!r}{'; ' if hint else ''}{hint}.")


def number(name: str, value: Any, wanted: str = "a finite number") -> float:
    """`value` as Python's own float, if it is a finite real number; a truth value and a text are none.

    Raises:
        ConfigError: Naming it, and what is `wanted`.
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if math.isfinite(found):
            return found
    raise ConfigError(f"`{name}` must be {wanted}, got {value!r}.")


def truth(name: str, value: Any) -> bool:
    """`value` as Python's own truth value; "no", 0 and None are none.

    Raises:
        ConfigError: Naming it.
    """
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise ConfigError(f"`{name}` must be True or False, got {value!r}.")


def check_fields(settings: Any, prefix: str = "") -> None:
    """Refuse values that do not have the type of their field, in a dataclass and those inside it.

    Whole numbers may stand for floats; nothing else is converted, and floats must be finite.

    Args:
        settings: A dataclass whose annotations are built of `int`, `float`, `bool`, `str`, lists, tuples and
            dictionaries of these, `None`, and `Any`.
        prefix: What stands before the names of its fields in an error, such as `"policy."`.

    Raises:
        ConfigError: Naming the field, its value and what is wanted.
    """
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), prefix + field.name
        if dataclasses.is_dataclass(hints[field.name]):
            require(name, value, isinstance(value, hints[field.name]), f"a {hints[field.name].__name__}")
            check_fields(value, f"{name}.")
        else:
            require(name, value, fits(value, hints[field.name]), words_for(hints[field.name]))


def like_default(name: str, value: Any, default: Any) -> None:
    """Refuse a setting whose value is of another kind than its default.

    A default of None says nothing. In place of a float there may be None or infinity, which switch it off.

    Raises:
        ConfigError: Naming it.
    """
    if isinstance(default, bool):
        truth(name, value)
    elif is_whole(default):
        whole(name, value)
    elif isinstance(default, float) and value not in (None, math.inf):
        number(name, value)
    elif isinstance(default, str):
        require(name, value, isinstance(value, str), "a text")
    elif isinstance(default, dict):
        require(name, value, isinstance(value, Mapping), "a mapping")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has a type, which is built as those that `check_fields` reads."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, each) for each in inner)
    if hint is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return as_whole(value) is not None
    if origin is dict:
        return isinstance(value, Mapping) and all(
            fits(key, inner[0]) and fits(each, inner[1]) for key, each in value.items()
        )
    if origin in (list, tuple):
        if not isinstance(value, Sequence) or isinstance(value, str):
            return False
        wanted = inner[:1] * len(value) if origin is list or inner[-1:] == (Ellipsis,) else inner
        return len(value) == len(wanted) and all(map(fits, value, wanted))
    return isinstance(value, origin or hint)


def words_for(hint: Any) -> str:
    """What a value of a type is called in an error."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(words_for, inner))
    if origin in (list, tuple):
        return (
            f"a list of {len(inner)} numbers" if origin is tuple else f"a list of {words_for(inner[0])[2:]}s"
        )
    if origin is dict:
        return "a mapping"
    words = {int: "a whole number", float: "a finite number", bool: "True or False", str: "a text"}
    return words.get(hint, "null" if hint is type(None) else f"a {getattr(hint, '__name__', hint)}")
