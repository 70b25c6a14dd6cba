"""Texts as they are: OmegaConf and Hydra would read `${...}` in them as the name of something else.

A setting is often LaTeX, a template or a shell's text. It is shielded before these libraries see it, and
unshielded when they are done with it, so that what was written is what is read.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Container, Mapping
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Sweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from unirl_env.errors import ConfigError

MARK = "⁒"
"""Stands before a letter for a dollar, and before itself. YAML prints it as it is."""
NAMED = re.compile(rf"{MARK}|\$\{{([A-Za-z_][\w.]*)\}}|\$")
STRANGE = re.compile(r"[^\w /\-\\+.%*@?|:=,()\[\]{}'\"]|[^\x00-\x7f]")
"""Characters that Hydra's grammar does not know outside of quotes, or reads as an interpolation."""
SPELLED = re.compile(r"QqX([0-9a-f]+)XqQ")
"""How such a character is spelled for it: in letters, of which it knows all."""


def shielded(value: Any) -> Any:
    """A value whose texts, keys included, hold no dollar; `unshielded` gives it back."""
    return _each_text(value, lambda text: text.replace(MARK, MARK * 2).replace("$", f"{MARK}S"))


def unshielded(value: Any) -> Any:
    """What was given to `shielded`."""
    return _each_text(value, lambda text: re.sub(f"{MARK}(.)", _shown, text))


def shielded_but(text: str, filled: Container[str]) -> str:
    """A text that holds no dollar but where `${name}` is one of the names that OmegaConf shall fill in."""

    def hidden(found: re.Match[str]) -> str:
        if found[0] == MARK:
            return MARK * 2
        return found[0] if found[1] and found[1] in filled else f"{MARK}S{found[0][1:]}"

    return NAMED.sub(hidden, text)


def from_yaml(text: str, source: str) -> DictConfig:
    """A shielded YAML text as a node.

    Args:
        text: The YAML.
        source: What errors call it.

    Raises:
        ConfigError: If it is no YAML, or no mapping.
    """
    try:
        values = OmegaConf.load(io.StringIO(text))
    except Exception as error:  # whatever the YAML reader raises
        said = unshielded(" ".join(line.strip() for line in str(error).splitlines()))
        raise ConfigError(
            f"{source} must be YAML, got: {said[:300]}; try quotes around texts with `: `, `#` or braces."
        ) from error
    if not isinstance(values, DictConfig):
        raise ConfigError(f"{source} must hold a mapping such as `seed: 1`, got a list or a single value.")
    return values


def yaml_values(text: str, source: str) -> dict[str, Any]:
    """A YAML text as plain values, in which every text is literal.

    Args:
        text: The YAML.
        source: What errors call it.

    Raises:
        ConfigError: If it is no YAML, or no mapping.
    """
    held: dict[str, Any] = unshielded(
        OmegaConf.to_container(from_yaml(shielded(text), source), resolve=False)
    )
    return held


def parsed(text: str) -> Any:
    """A value by Hydra's grammar: a number, a truth value, null, a list, a mapping, a text in quotes.

    Texts without quotes come back as they are, and so do characters that the grammar does not know.

    Raises:
        ValueError: If the grammar has no such value, or it is one of several (`1,2`).
    """
    spelled = STRANGE.sub(lambda found: f"QqX{ord(found[0]):x}XqQ", text)
    try:
        override = OverridesParser.create().parse_override(f"v={spelled}")
    except (HydraException, ValueError) as error:
        raise ValueError(first_line(error)) from error
    assert isinstance(override, Override)
    if isinstance(override.value(), Sweep):
        raise ValueError("several values")
    return _each_text(
        override.value(), lambda text: SPELLED.sub(lambda found: chr(int(found[1], 16)), str(text))
    )


def first_line(error: BaseException) -> str:
    """The part of a library's message that is meant for people."""
    return str(unshielded((str(error).strip().splitlines() or [type(error).__name__])[0]))


def _shown(found: re.Match[str]) -> str:
    return "$" if found[1] == "S" else found[1]


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_each_text(key, change): _each_text(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_each_text(inner, change) for inner in value)
    return value
