"""Secrets of scorers, read from the environment: they stand in no file, no message and no `repr`."""

from __future__ import annotations

import os

from unirl_env.errors import ConfigError

__all__ = ["secret"]


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
    return found or None
