"""Classes that share arguments, each of which is named and explained once."""

from __future__ import annotations

import inspect
from typing import Any

__all__ = ["PassesOptions"]


class PassesOptions:
    """Shows whole signatures of subclasses that take `**options` for the class above.

    So `help`, and whoever holds the options of a configuration against a class, see all of them.
    """

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Replace `**options` by the arguments that the class above names."""
        super().__init_subclass__(**arguments)
        own = inspect.signature(cls.__init__, eval_str=False)
        found = {name: one for name, one in own.parameters.items() if name != "self"}
        rest = next((name for name, one in found.items() if one.kind is one.VAR_KEYWORD), None)
        above = getattr(cls.__mro__[1], "__signature__", None) or inspect.signature(cls.__mro__[1].__init__)
        if rest is not None:
            del found[rest]
            for name, one in above.parameters.items():
                if name != "self" and name not in found:
                    found[name] = one.replace(kind=one.KEYWORD_ONLY)
        cls.__signature__ = inspect.Signature([*found.values()])
