"""From a name in a configuration to the thing it names, imported on first use."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from unirl_env.errors import ConfigError

__all__ = ["Registry", "instance", "is_path", "lazily", "require_fit"]


def is_path(name: str) -> bool:
    """Whether something is named by where it stands, and is none of those that ship."""
    return "." in name or ":" in name


def instance(target: Any, options: Mapping[str, Any], label: str) -> Any:
    """What a configuration means by a target and options: an object of a class, or a function itself.

    Args:
        target: What `Registry.get` gave.
        options: Arguments of the class.
        label: What messages call it.

    Raises:
        ConfigError: If the options do not fit the class, or there are any for a function.
    """
    require_fit(target, options, label)
    return target(**options) if inspect.isclass(target) else target


def require_fit(target: Any, options: Mapping[str, Any], label: str) -> None:
    """Refuse options that `instance` could not use, as far as their names tell; nothing is made.

    Args:
        target: What `Registry.get` gave.
        options: Arguments of the class.
        label: What messages call it.

    Raises:
        ConfigError: If one is missing or unknown, or there are any for a function.
    """
    if not inspect.isclass(target):
        if options:
            raise ConfigError(
                f"{label[0].upper()}{label[1:]} is a function and takes no options, got {sorted(options)}."
            )
        return
    try:
        signature = inspect.signature(target)
    except ValueError:  # written in C
        return
    needed = [
        one.name
        for one in signature.parameters.values()
        if one.default is one.empty and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]
    if missing := [name for name in needed if name not in options]:
        lacking = ", ".join(f"{name}: ..." for name in missing)
        raise ConfigError(
            f"The options of {label} do not fit: it must have {_listed(needed)}, got "
            f"{sorted(options) or 'none'}; try `{lacking}` beside its name."
        )
    try:
        signature.bind(**options)
    except TypeError as error:
        raise ConfigError(f"The options of {label} do not fit: {error}.") from error


def _listed(names: list[str]) -> str:
    *first, last = (f"`{name}`" for name in names)
    return f"{', '.join(first)} and {last}" if first else last


class Registry:
    """Names and the places of what they name.

    Nothing is imported before it is asked for, so that listing every model and reward costs nothing. What a
    user writes needs no registration: its dotted path stands wherever a name does.

    Args:
        kind: What is named, for error messages (`"reward"`).
        targets: Name to target, `"package.module:attribute"`.

    Raises:
        ConfigError: If a target is malformed.
    """

    def __init__(self, kind: str, targets: Mapping[str, str] | None = None):
        self.kind = kind
        self._targets: dict[str, str] = {}
        for name, target in (targets or {}).items():
            self.register(name, target)

    def __contains__(self, name: object) -> bool:
        return name in self._targets

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._targets))

    def __len__(self) -> int:
        return len(self._targets)

    def register(self, name: str, target: str) -> None:
        """Let `name` stand for `target`.

        Raises:
            ConfigError: If `target` is not `"package.module:attribute"`, or `name` stands for another one.
        """
        module, _, attribute = target.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
            raise ConfigError(f"A {self.kind} target must be 'package.module:attribute', got {target!r}.")
        if not name or set(name) & {".", ":"}:
            raise ConfigError(
                f"A {self.kind} name must have no '.' and no ':', which mark a dotted path, got {name!r}."
            )
        if self._targets.setdefault(name, target) != target:
            raise ConfigError(
                f"A {self.kind} name must be free, got {name!r}, which stands for {self._targets[name]!r}; "
                f"try another name."
            )

    def get(self, name: str) -> Any:
        """What `name` names.

        Args:
            name: A registered name, or the path of anything that can be imported:
                `"package.module:attribute"` or `"package.module.attribute"`.

        Raises:
            ConfigError: If the name is unknown, or nothing can be imported from the path.
        """
        if name in self._targets:
            module, attribute = self._targets[name].split(":")
        elif isinstance(name, str) and ":" in name:
            module, _, attribute = name.partition(":")
        elif isinstance(name, str) and "." in name:
            module, _, attribute = name.rpartition(".")
        else:
            raise ConfigError(self._unknown(name))
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            # A dependency that is missing inside an existing module keeps its own, better message.
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise
            raise ConfigError(
                f"`{name}` must name a module that exists, got {error}; {_near(error.name)}"
            ) from error
        except (ValueError, TypeError) as error:
            raise ConfigError(self._unknown(name)) from error
        try:
            for part in attribute.split("."):
                found = getattr(found, part)
        except AttributeError as error:
            close = _closest(part, (one for one in dir(found) if not one.startswith("_")))
            remedy = f"; did you mean `{module}:{close}`?" if close else "."
            raise ConfigError(f"`{name}` must name something in `{module}`, got {error}{remedy}") from error
        return found

    def target(self, name: str) -> str:
        """Where what `name` stands for lies: `"package.module:attribute"`; nothing is imported.

        Raises:
            KeyError: If there is no such name.
        """
        return self._targets[name]

    def _unknown(self, name: Any) -> str:
        close = difflib.get_close_matches(str(name), self._targets, n=1)
        remedy = f"try {close[0]!r}" if close else "try one of them"
        return (
            f"`{self.kind}` must be one of {list(self)} or the path of your own, got {name!r}; "
            f"{remedy}, or 'package.module:attribute'."
        )


def _near(module: str) -> str:
    """What may have been meant by a module that is not there."""
    parent, _, last = module.rpartition(".")
    if parent and not hasattr(sys.modules[parent], "__path__"):
        return f"try '{parent}:{last}' if that is in `{parent}`, which holds no modules."
    places = sys.modules[parent].__path__ if parent else None
    close = _closest(last, (one.name for one in pkgutil.iter_modules(places)))
    if close:
        return f"did you mean `{parent}.{close}`?" if parent else f"did you mean `{close}`?"
    return "try installing the package that has it where this one is, or its folder in PYTHONPATH."


def _closest(name: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, [*known], n=1)), None)


def lazily(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package whose names load on first use.

    Which names there are, and where they come from, is what the package imports for type checkers: the
    `if TYPE_CHECKING:` at its top.

    Args:
        package: Its name; it is being imported.
    """
    module = sys.modules[package]
    checked = (node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.If))
    imports = [node for block in checked for node in block.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: str(node.module) for node in imports for alias in node.names}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}; it has {vars(module)['__all__']}"
            )
        if homes[name] == package:
            return importlib.import_module(f"{package}.{name}")
        return getattr(importlib.import_module(homes[name]), name)

    def names() -> list[str]:
        return sorted(vars(module)["__all__"])

    return get, names
