"""A setting is one field: its default, the reason under it, what it may be, and how it is known elsewhere.

A group of settings is a dataclass that derives from `Settings`, whose fields are made by `setting`. All
else is read from there: the checks of the command line and of Python, the attributes of an `AgentConfig`,
what a continued run may change, and the table of all settings in the docs.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from unirl_env.arguments.values import fits, require, words_for
from unirl_env.errors import ConfigError


def setting(
    default: Any,
    *,
    choices: tuple[Any, ...] = (),
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    word: str = "",
    why: str = "",
    hint: str = "",
    python: str | bool = True,
    inherits: bool = False,
    may_change: bool = False,
) -> Any:
    """A field of a group of settings.

    Args:
        default: Its value where nothing is said; a dictionary or a list is copied for each group.
        choices: The values that there are; None is one where the type allows it.
        least: The smallest number.
        above: A bound that numbers must exceed.
        most: The largest number. Infinity is accepted only where this is infinite.
        below: A bound that numbers must stay under.
        word: A text that may stand in the place of a number.
        why: Why nothing else works, for errors.
        hint: What to try instead, for errors; without it, the default where that is within the bounds.
        python: The attribute of an `AgentConfig` that holds it, if it is called otherwise there; False if
            none does, because it concerns a whole run.
        inherits: Whether null means what the algorithm itself has chosen.
        may_change: Whether a continued run may change it, because it leaves the mathematics alone.
    """
    facts = dict(choices=choices, least=least, above=above, most=most, below=below, why=why, hint=hint)
    facts |= dict(word=word, python=python, inherits=inherits, may_change=may_change)
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=facts)
    return dataclasses.field(default=default, metadata=facts)


class Settings:
    """A group of settings; what concerns several of its fields, its `check` adds."""

    if TYPE_CHECKING:  # Those that derive from this are dataclasses; OmegaConf would take it for a field.
        __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def check(self, prefix: str = "") -> None:
        """Refuse what cannot work, whatever the other groups say.

        Args:
            prefix: What stands before the names in an error, such as `"agent."` on the command line. Without
                one, settings are called as the attributes of an `AgentConfig` are.

        Raises:
            ConfigError: Naming the setting, its value and the remedy.
        """
        check_values(self, prefix)

    def named(self, name: str, prefix: str = "") -> str:
        """What an error calls the field `name`."""
        return named(next(each for each in dataclasses.fields(self) if each.name == name), prefix)


def check_values(settings: Any, prefix: str = "") -> None:
    """Hold each field of a dataclass against its type and its bounds; see `Settings.check`.

    Raises:
        ConfigError: Naming the setting, its value and the remedy.
    """
    hints = _hints(settings.__class__)
    for field in dataclasses.fields(settings):
        hint, value = hints[field.name], getattr(settings, field.name)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            require(prefix + field.name, value, isinstance(value, hint), f"a {hint.__name__}")
            continue
        endless = _is_real(value) and value == math.inf == field.metadata.get("most")
        require(named(field, prefix), value, endless or fits(value, hint), words_for(hint))
        if value is not None:
            _check_bounds(field, value, prefix, null=hint is not Any and fits(None, hint))


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def named(field: dataclasses.Field[Any], prefix: str = "") -> str:
    """What an error calls a field."""
    return f"{prefix}{field.name}" if prefix else python_name(field) or field.name


def python_name(field: dataclasses.Field[Any]) -> str | None:
    """The attribute of an `AgentConfig` that holds a setting; None if it concerns a whole run."""
    known = field.metadata.get("python", True)
    return known if isinstance(known, str) else field.name if known else None


def may_change(field: dataclasses.Field[Any]) -> bool:
    """Whether a continued run may change a setting."""
    return bool(field.metadata.get("may_change", False))


def allowed(field: dataclasses.Field[Any]) -> str:
    """What a setting may be, in words; empty where its type says it all."""
    facts = {name: field.metadata.get(name) for name in ("choices", "least", "above", "most", "below")}
    if facts["choices"]:
        return f"one of {', '.join(_shown(choice) for choice in facts['choices'])}"
    low, high = facts["least"], facts["most"] if facts["below"] is None else facts["below"]
    if facts["above"] is not None:
        low = facts["above"]
    if high is None or high == math.inf:
        if low is None:
            return ""
        if field.metadata.get("word"):
            return f"at least {low:g}, or {_shown(field.metadata['word'])}"
        return f"at least {low:g}" if facts["above"] is None else "positive" if not low else f"above {low:g}"
    opening, closing = "[("[facts["above"] is not None], "])"[facts["below"] is not None]
    return f"in {opening}{low:g}, {high:g}{closing}"


def _check_bounds(field: dataclasses.Field[Any], value: Any, prefix: str, null: bool) -> None:
    facts = field.metadata
    if _within(facts, value):
        return
    wanted = f"{_verb(allowed(field))}{', or null' if null else ''}"
    why = f": {facts['why']}" if facts["why"] else ""
    remedy = f"; try {remedy}" if (remedy := _remedy(field)) else ""
    raise ConfigError(f"`{named(field, prefix)}` must {wanted}, got {value!r}{why}{remedy}.")


def _within(facts: Mapping[str, Any], value: Any) -> bool:
    if isinstance(value, str) and facts.get("word"):
        return bool(value == facts["word"])
    if facts.get("choices"):
        return any(value == choice and type(value) is type(choice) for choice in facts["choices"])
    bounds: tuple[tuple[str, Callable[[float], bool]], ...] = (
        ("least", lambda bound: value >= bound),
        ("above", lambda bound: value > bound),
        ("most", lambda bound: value <= bound),
        ("below", lambda bound: value < bound),
    )
    return all(holds(facts[name]) for name, holds in bounds if facts.get(name) is not None)


def _remedy(field: dataclasses.Field[Any]) -> str:
    facts = field.metadata
    if facts["hint"]:
        return str(facts["hint"])
    default = field.default
    fit = default is not dataclasses.MISSING and (default is None or _within(facts, default))
    return _shown(default) if fit else ""


def _verb(words: str) -> str:
    return f"lie {words}" if words.startswith("in ") else f"be {words}"


def _shown(value: Any) -> str:
    known = {None: "null", True: "true", False: "false"}
    return (
        known[value]
        if value is None or isinstance(value, bool)
        else f"{value:g}"
        if _is_real(value)
        else value
    )


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
