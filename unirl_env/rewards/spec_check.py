"""A reward's words held against what there is, before anything is built."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from unirl_env.errors import ConfigError, MissingExtra
from unirl_env.rewards.names import SCORERS

__all__ = ["check_reward", "options_of", "require_extra", "require_own"]

COMPOSITIONS = ("weighted_sum", "product", "minimum")
EXTRAS = {
    "aesthetic": ("open_clip", "open_clip_torch", "clip"),
    "clip": ("open_clip", "open_clip_torch", "clip"),
    "hpsv2": ("open_clip", "open_clip_torch", "clip"),
    "http": ("httpx", "httpx", "remote"),
    "judge": ("httpx", "httpx", "remote"),
    "math": ("math_verify", "math-verify", "math"),
    "remote": ("httpx", "httpx", "remote"),
}
"""By reward: the module that it imports, its package, and the extra that installs it."""


def check_reward(spec: Any) -> None:
    """Refuse a reward that is unknown, whose options do not fit, or whose package is not installed.

    Args:
        spec: What `build_scorer` understands.

    Raises:
        ConfigError: Naming the reward and the option.
        MissingExtra: If its package is missing.
    """
    if not isinstance(spec, str | Mapping):
        if not callable(spec):
            raise ConfigError(
                f"A reward must be a name, a mapping or a callable, got {spec!r}; try 'shapes', or "
                "{'name': 'clip'}."
            )
        return
    options = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    name = options.pop("name", None)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"A reward must have a `name`, got {spec!r}; try {{'name': 'shapes'}}.")
    if name in COMPOSITIONS:
        for part in _parts(options.get("parts")):
            check_reward(part)
        return
    if name in EXTRAS:
        require_extra(*EXTRAS[name])
    target = SCORERS.get(name)
    for part in getattr(target, "wraps", ()):
        if part in options:
            check_reward(options[part])
    require_own(options, options_of(target), f"The options of reward {name!r} must be its own")


def require_own(options: Iterable[Any], known: Collection[str] | None, words: str) -> None:
    """Refuse options that something does not take.

    Args:
        options: Their names.
        known: What it takes; None where that cannot be said.
        words: How the error begins, up to what it got.

    Raises:
        ConfigError: Naming the first, and the nearest that there is.
    """
    for option in options if known is not None else ():
        if option not in known:
            near = difflib.get_close_matches(str(option), known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"it has {', '.join(sorted(known)) or 'none'}."
            raise ConfigError(f"{words}, got {option!r}, which is none; {hint}")


def options_of(target: Any) -> set[str] | None:
    """The keyword arguments of a class, with those that it passes up; None where it takes any, or is none."""
    if not inspect.isclass(target):
        return None
    found: set[str] = set()
    for kind in target.__mro__:
        if "__init__" not in vars(kind):
            continue
        if kind is object:
            return found
        parameters = inspect.signature(kind.__init__).parameters.values()
        found |= {one.name for one in parameters if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)}
        found.discard("self")
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            return found
    return None


def require_extra(module: str, package: str, extra: str) -> None:
    """Refuse to go on without a package.

    Raises:
        MissingExtra: Naming it.
    """
    if find_spec(module) is None:
        raise MissingExtra(package, extra)


def _parts(parts: Any) -> Iterator[Any]:
    """The rewards of a composition: by their names where there is a weight alone."""
    for name, own in parts.items() if isinstance(parts, Mapping) else ():
        if isinstance(own, Mapping):
            yield {"name": name, **{key: value for key, value in own.items() if key != "weight"}}
        else:
            yield name if isinstance(own, int | float) else own
