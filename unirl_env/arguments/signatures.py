"""What classes take: options held against them, and arguments that several share."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Iterable
from typing import Any, ClassVar

from unirl_env.errors import ConfigError


class PassesOptions:
    """Shows whole signatures of classes that take `**options` for another one.

    So `help`, and whoever holds the options of a configuration against a class, see all of them. The other
    one is `passes_to` of the class's definition, by default the class above.
    """

    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls, passes_to: type | None = None, **arguments: Any) -> None:
        """Replace `**options` by the arguments that the other class names."""
        super().__init_subclass__(**arguments)
        found = {name: one for name, one in _parameters(cls).items() if one.kind is not one.VAR_KEYWORD}
        if len(found) < len(_parameters(cls)):
            for name, one in inspect.signature(passes_to or cls.__mro__[1]).parameters.items():
                found.setdefault(name, one.replace(kind=one.KEYWORD_ONLY))
        cls.__signature__ = inspect.Signature([*found.values()])


def _parameters(kind: Any) -> dict[str, inspect.Parameter]:
    """Those of a class's own constructor."""
    parameters = inspect.signature(kind.__init__).parameters
    return {name: one for name, one in parameters.items() if name != "self"}


def require_own(options: Iterable[Any], known: Collection[str] | None, words: str) -> None:
    """Refuse options that something does not take.

    Args:
        options: Their names.
        known: What it takes; None where that cannot be said.
        words: How the error begins, up to what it got.

    Raises:
        ConfigError: Naming the first, and the nearest that there is.
    """
    if known is None:
        return
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(str(option), known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"it has {', '.join(sorted(known)) or 'none'}."
            raise ConfigError(f"{words}, got {option!r}, which is none; {hint}")


def options_of(target: Any) -> set[str] | None:
    """The keyword arguments of a class, with those that it passes up; None where it takes any, or is none."""
    if not inspect.isclass(target):
        return None
    if "__signature__" in vars(target):
        return set(inspect.signature(target).parameters)
    found: set[str] = set()
    for kind in target.__mro__:
        if "__init__" not in vars(kind):
            continue
        if kind is object:
            return found
        parameters = _parameters(kind).values()
        found |= {one.name for one in parameters if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)}
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            return found
    return None
