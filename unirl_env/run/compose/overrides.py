"""What people type as `setting=value`: read by the type of the setting, and refused by its name.

A text setting is taken as it is typed, `${...}`, commas, brackets and backslashes included; quotes around the
whole come off. Other values follow Hydra's grammar, in which texts inside lists and mappings may be quoted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unirl_env.arguments.values import words_for
from unirl_env.errors import ConfigError
from unirl_env.run.compose.names import (
    GROUPS,
    OPEN,
    SECTIONS,
    TEXTS,
    TYPES,
    WHOLE,
    below,
    respelled,
    unknown_name,
)
from unirl_env.settings.literal import first_line, parsed, shielded

QUOTES = "\"'"
OPENED, CLOSED = "([{", ")]}"


@dataclass(frozen=True)
class Override:
    """One word of the command line.

    Attributes:
        name: The setting or group, by its own name.
        value: What stands behind `=`, as it was typed.
        removes: Whether it began with `~`.
        typed: All of it, for messages.
    """

    name: str
    value: str
    removes: bool
    typed: str

    @property
    def chooses(self) -> bool:
        """Whether it picks an option of a group, such as `agent=grpo`."""
        return self.name in GROUPS and not self.value.lstrip().startswith("{") and not self.removes


def split(item: str) -> Override:
    """The parts of a word.

    `+` and `++` mean nothing: every setting is there already, and open ones take any name.

    Raises:
        ConfigError: If it is not `setting=value`.
    """
    name, equals, value = item.partition("=")
    removes, name = name.startswith("~"), name.lstrip("+~")
    if not name or name != name.strip() or not (equals or removes):
        raise ConfigError(
            f"What is set must be `setting=value` without blanks around `=`, got {item!r}; try "
            f"`{respelled(name.strip().lstrip('-')) or 'seed'}=...`."
        )
    return Override(respelled(name), value, removes, item)


def last_value(items: Sequence[str], name: str) -> str | None:
    """What the last word for a text setting says; None where there is none, or it says null."""
    found = [one for one in map(split, items) if one.name == name]
    return _text(found[-1].value, optional=True) or None if found else None


def alternatives(item: str) -> list[str]:
    """The words that a word of a sweep stands for: one for each value between commas, of a choice or a range.

    Raises:
        ConfigError: If it is not `setting=value`, or a kind of sweep that is unknown here.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    one = split(item)
    kind = one.value.partition("(")[0].strip()
    if kind in ("choice", "range") and one.value.rstrip().endswith(")"):
        try:
            values = list(OverridesParser.create().parse_override(f"v={one.value}").sweep_string_iterator())
        except HydraException as error:
            raise ConfigError(
                f"`{one.name}` must be a sweep, got {one.value}: {first_line(error)}."
            ) from error
    elif kind in ("interval", "glob") and one.value.rstrip().endswith(")"):
        raise ConfigError(
            f"`{one.name}` must be values between commas, a choice or a range in a sweep, got {one.value}; "
            f"try `{one.name}=1,2`."
        )
    else:
        values = _parts(one.value)
    return [item] if len(values) == 1 else [f"{item.partition('=')[0]}={value}" for value in values]


def apply(node: DictConfig, items: Sequence[Override], groups: bool = True) -> None:
    """Set what was typed, in the order in which it was typed.

    Args:
        node: The settings, whose texts are shielded.
        items: The words, without those that choose options.
        groups: Whether options could have been chosen, for messages.

    Raises:
        ConfigError: If a name is unknown, or a value does not fit it.
    """
    for one in items:
        if one.name in SECTIONS:
            _set_section(node, one, groups)
        elif one.name not in TYPES and below(one.name) is None:
            raise ConfigError(unknown_name(one.name))
        elif one.removes:
            _remove(node, one)
        else:
            _set(node, one.name, _read(one.name, one.value))


def _set_section(node: DictConfig, one: Override, groups: bool) -> None:
    """`steps={kind: all}` sets what the mapping names, and leaves the rest."""
    try:
        values = None if one.removes else parsed(one.value)
    except ValueError as error:
        raise ConfigError(_no_value(one.name, one.value, error)) from error
    if not isinstance(values, Mapping):
        options = " It is a whole run's settings, and has no options to choose." if not groups else ""
        raise ConfigError(
            f"`{one.name}` holds settings, and must be a mapping or be set one by one, got {one.typed}; try "
            f"leaving it out, or `{next(name for name in TYPES if name.startswith(f'{one.name}.'))}=...`."
            f"{options}"
        )
    for key, value in values.items():
        name = f"{one.name}.{key}"
        if name not in TYPES:
            raise ConfigError(unknown_name(name))
        _set(node, name, value)


def _read(name: str, text: str) -> Any:
    """The value that was typed for a setting, or for a name below an open one."""
    kind = _kind(name)
    if name in TEXTS or kind is str:
        return _text(text, optional=type(None) in get_args(kind))
    if kind is Any and text.strip()[:1] not in (*OPENED, *QUOTES):
        return _plain(text)
    try:
        return parsed(text.strip())
    except ValueError as error:
        if kind is Any and text.strip()[:1] in QUOTES:
            return text  # an apostrophe, not a quotation
        raise ConfigError(_no_value(name, text, error)) from error


def _kind(name: str) -> Any:
    if name in TYPES:
        return TYPES[name]
    open_kind = get_args(TYPES[below(name) or name])
    return open_kind[1] if open_kind else Any


def _text(text: str, optional: bool) -> str | None:
    if optional and text.strip().lower() in ("", "null"):
        return None
    if text[:1] and text[:1] in QUOTES:
        try:
            return str(parsed(text)) if text[-1:] == text[:1] else text
        except ValueError:
            return text
    return text


def _plain(text: str) -> Any:
    """A number, a truth value or null; any other text as it is."""
    try:
        value = parsed(text.strip())
    except ValueError:
        return text
    return value if value is None or isinstance(value, bool | int | float) else text


def _set(node: DictConfig, name: str, value: Any) -> None:
    kind, whole = _kind(name), name in WHOLE
    if isinstance(value, bool) and not whole and kind is not Any and bool not in (kind, *get_args(kind)):
        raise ConfigError(f"`{name}` must be {words_for(kind)}, got {value}.")
    if isinstance(value, str) and value.isdecimal() and int in (kind, *get_args(kind)):
        value = int(value)  # the grammar takes 007 for a text
    _require_mapping(node, name)
    try:
        OmegaConf.update(
            node, name, shielded(value), merge=not whole, force_add=name not in TYPES or name in OPEN
        )
    except OmegaConfBaseException as error:
        wanted = words_for(kind) if kind is not Any else "a value that OmegaConf takes"
        raise ConfigError(f"`{name}` must be {wanted}, got {value!r}{_advice(name, value, kind)}.") from error


def _require_mapping(node: DictConfig, name: str) -> None:
    """Refuse an option of what has none, such as of a reward that is one word."""
    while (parent := name.rpartition(".")[0]) and below(name):
        raw = OmegaConf.to_container(node, resolve=False)
        held: Any = raw
        for part in parent.split("."):
            held = held.get(part) if isinstance(held, Mapping) else None
        if held is not None and not isinstance(held, Mapping | list):
            option = name.rpartition(".")[2]
            raise ConfigError(
                f"`{parent}` must be a mapping to have a `{option}`, got {held!r}; try "
                f"'{parent}={{name: {held}, {option}: ...}}'."
            )
        name = parent


def _remove(node: DictConfig, one: Override) -> None:
    parent, _, last = one.name.rpartition(".")
    held = OmegaConf.select(node, parent) if below(one.name) else None
    if held is None or last not in held:
        remedy = f"`{one.name}=null`, or leaving it out" if one.name in TYPES else "leaving it out"
        raise ConfigError(
            f"`~` must take away what stands in an open setting such as `agent.options`, got {one.typed}; "
            f"try {remedy}."
        )
    OmegaConf.set_struct(held, False)
    del held[last]


def _no_value(name: str, text: str, error: Exception) -> str:
    kind = _kind(name) if name in TYPES or below(name) else Any
    wanted = "a mapping" if name in SECTIONS else words_for(kind) if kind is not Any else "a value"
    if str(error) == "several values" and "list" not in wanted:
        remedy = f"`-m {name}={text}` for a run with each"
    elif kind is Any or name in OPEN or name in SECTIONS:
        remedy = f"quotes around texts that hold any of , : ( ) [ ] {{ }}, as in '{name}=\"...\"'"
    else:
        inside = text.strip().strip("()[]")
        remedy = f"`{name}=[{inside}]`" if "list" in wanted else f"a single value, as in `{name}=...`"
    return f"`{name}` must be {wanted}, got {text}, which cannot be read as one; try {remedy}."


def _advice(name: str, value: Any, kind: Any) -> str:
    words = words_for(kind) if kind is not Any else ""
    if "list" in words and not isinstance(value, list):
        return f"; try `{name}=[{value}]`"
    if "mapping" in words and not isinstance(value, Mapping):
        return f"; try '{name}={{key: value}}'"
    if int in (kind, *get_args(kind)) and isinstance(value, float) and value.is_integer():
        return f"; try {int(value)}"
    return ""


def _parts(text: str) -> list[str]:
    """What stands between the commas that are in no quotes and no brackets."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in QUOTES and not parts[-1].strip():
            quote = letter
        depth += (letter in OPENED) - (letter in CLOSED) if not quote else 0
        if letter == "," and not quote and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts] if len(parts) > 1 else [text]
