"""What pickles and copies of environments are made of: constructor's arguments rather than what was loaded.

Weights of pretrained models never travel in a pickle: what loads them is made anew from its arguments. Copies
in the same process share them.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from unirl_env.errors import ContractError


class KeepsArguments:
    """Remembers what its constructor was called with, whatever subclass was meant."""

    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Note the arguments; `__init__` takes them as ever."""
        if (args or options) and cls.__init__ is object.__init__:
            # Python itself says so only to classes without a `__new__`.
            raise TypeError(f"{cls.__name__}() takes no arguments")
        made = super().__new__(cls)
        made._arguments = (args, options)
        return made


class MadeAnew(KeepsArguments):
    """Is pickled and copied as its constructor's arguments, and made anew by them.

    What is set on such an object later does not travel.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        args, options = self._arguments
        return _made, (type(self), args, options)


class FromArguments(MadeAnew):
    """Is pickled as its constructor's arguments; a copy in the same process shares what is loaded.

    For what is read-only once it is made, as adapters and networks that judge are.
    """

    def __copy__(self) -> Any:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        memo[id(self)] = twin = copy.copy(self)
        return twin


class Shared:
    """Stands in a state for what copies share and pickles leave out: they read None.

    Args:
        value: A network that nobody changes.
    """

    def __init__(self, value: Any):
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return _nothing, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self.value


class Carried:
    """Stands in a state for what a user gave, which may be a function without a name of its own.

    Functions that no module names travel by value, where what they hold can be pickled.

    Args:
        name: What an error calls it.
        value: What is read back.
    """

    def __init__(self, name: str, value: Any):
        self.name, self.value = name, value

    def __reduce__(self) -> tuple[Any, ...]:
        import cloudpickle

        try:
            return pickle.loads, (cloudpickle.dumps(self.value),)
        except Exception as error:
            raise self._refused("pickled", error) from error

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        try:
            return copy.deepcopy(self.value, memo)
        except Exception as error:
            raise self._refused("copied", error) from error

    def _refused(self, what: str, error: Exception) -> ContractError:
        return ContractError(
            f"`{self.name}` must be something that can be {what} together with its environment, got "
            f"{type(self.value).__name__}: {type(error).__name__}: {error}; try a function of a module, or a "
            "class that opens its files, connections and locks on first use."
        )


def carried_spec(spec: Any) -> Any:
    """A spec of Gymnasium, whose arguments may be a user's functions, for a state."""
    return None if spec is None else replace(spec, kwargs=carried(spec.kwargs))


def carried(named: Mapping[str, Any]) -> dict[str, Carried]:
    """Named arguments for a state."""
    return {name: Carried(name, value) for name, value in named.items()}


def _made(kind: type, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return kind(*args, **options)


def _nothing() -> None:
    return None
