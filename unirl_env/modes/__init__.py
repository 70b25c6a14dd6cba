"""The modes: what kinds of environments there are. One table, open to users, resolved once for an agent."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from unirl_env.errors import ConfigError
from unirl_env.modes.mode import Mode
from unirl_env.registry import Registry

__all__ = ["MODES", "Mode", "mode_of"]

MODES = Registry(
    "mode",
    {
        "ar": "unirl_env.modes.shipped:TOKENS",
        "diffusion": "unirl_env.modes.shipped:DENOISING",
        "mdp": "unirl_env.modes.shipped:MDPS",
        "pe": "unirl_env.modes.shipped:ENHANCING",
        "unified_model": "unirl_env.modes.shipped:HYBRID",
    },
)
"""By the names that recipes use. `MODES.register("mine", "package.module:Mine")` adds one; in processes that
do not import whoever registers it, a dotted path stands for it."""
BY_ARGUMENT = {
    "denoiser": "diffusion",
    "language_model": "ar",
    "mdp": "mdp",
    "unified_model": "unified_model",
}
"""The shipped modes by the argument that names a model, so that none is imported to be asked for its own."""


def mode_of(arguments: Mapping[str, Any]) -> Mode:
    """The mode of an environment with these arguments.

    The argument `mode` says it: a registered name, a dotted path, or a `Mode` (object or class). Without it,
    it follows from the argument that names the environment's model.

    Raises:
        ConfigError: If `mode` is none, or no model is named, or several are.
    """
    named = arguments.get("mode")
    named = _implied(arguments) if named is None else named
    found = MODES.get(named) if isinstance(named, str) else named
    if inspect.isclass(found) and issubclass(found, Mode):
        if missing := sorted(found.__abstractmethods__):
            raise ConfigError(f"`mode` must answer {', '.join(missing)}, which {found.__name__} does not.")
        found = found()
    if not isinstance(found, Mode):
        raise ConfigError(
            f"`mode` must be one of {', '.join(MODES)}, the path of your own, or a `Mode`, got {named!r}; "
            "try 'package.module:MyMode'."
        )
    if lacking := [name for name in ("name", "argument", "environment") if not hasattr(found, name)]:
        raise ConfigError(f"`mode` must say its `{lacking[0]}`, which {type(found).__name__} does not.")
    return found


def _implied(arguments: Mapping[str, Any]) -> str:
    """The name of the mode that the argument with the model's name tells; shipped ones come first."""
    named = [argument for argument in BY_ARGUMENT if arguments.get(argument) is not None]
    own = [] if named else sorted(set(MODES) - {*BY_ARGUMENT.values(), "pe"})
    found = [BY_ARGUMENT[argument] for argument in named]
    found += [name for name in own if arguments.get(mode_of({"mode": name}).argument) is not None]
    if len(found) != 1:
        known = ", ".join(f"`{argument}`" for argument in BY_ARGUMENT)
        raise ConfigError(
            f"One of {known} must name a model family, got {named or found or 'none'}; try "
            "`denoiser='sd3'` or `language_model='causal_lm'`, or name the `mode` of your own."
        )
    return "pe" if found == ["ar"] and arguments.get("generator") else found[0]
