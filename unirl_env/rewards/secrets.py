"""Secrets, read from the environment: they stand in no file, no message and no `repr`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from unirl_env.errors import ConfigError
from unirl_env.errors.masks import REFERENCE, is_secret_name, remember

_IN_ADDRESSES = re.compile(rf"(?<==){REFERENCE.pattern}(?=[&#;]|$)|(?<=://){REFERENCE.pattern}(?=@)")


def secret(variable: str | None) -> str | None:
    """The secret in the environment variable `variable`; None if there is none.

    Args:
        variable: The name of the variable; None or empty for no secret at all.

    Raises:
        ConfigError: If what stands there cannot go into a header. The message does not repeat it.
    """
    if not variable:
        return None
    found = os.environ.get(variable, "").strip()
    if not (found.isascii() and found.isprintable()):
        raise ConfigError(
            f"The environment variable {variable} must hold printable ASCII; try to set it anew."
        )
    remember(found)
    return found or None


def resolved(settings: Any, name: str = "") -> Any:
    """Nested settings in which each `env:NAME` has become what the environment variable NAME holds.

    So has one in an address, before the host or in the query (`https://host/score?key=env:NAME`).

    Args:
        settings: Mappings, lists and whatever else.
        name: What messages call them.

    Raises:
        ConfigError: If a variable is not set, naming it and the setting.
    """
    if isinstance(settings, Mapping):
        return {
            key: resolved(value, f"{name}.{key}" if name else str(key)) for key, value in settings.items()
        }
    if isinstance(settings, list | tuple):
        return type(settings)(resolved(value, name) for value in settings)
    if not isinstance(settings, str) or "env:" not in settings:
        return settings
    if found := REFERENCE.fullmatch(settings):
        return _needed(found[1], name)
    if "://" in settings:
        return _IN_ADDRESSES.sub(lambda found: _needed(found[1] or found[2], name), settings)
    return settings


def remember_environment() -> None:
    """Take what stands in variables with names of secrets for secrets, wherever else it turns up."""
    for name, value in os.environ.items():
        if is_secret_name(name) and len(value) >= 8 and not os.path.exists(value):
            remember(value)


def _needed(variable: str, name: str) -> str:
    found = secret(variable)
    if found is None:
        raise ConfigError(
            f"The environment variable {variable} must hold the secret that `{name}` names, got nothing; try "
            f"`export {variable}=...` where the run starts. (A secret that was written out in the settings "
            "stands in no file, and is given again in this way.)"
        )
    return found
