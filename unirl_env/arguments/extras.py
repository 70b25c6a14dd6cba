"""Packages that are installed only by those who need them."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

from unirl_env.errors import MissingExtra


def needed(module: str, extra: str, package: str = "") -> Any:
    """A module of a package that may be missing.

    Args:
        module: What is imported.
        extra: What installs its package.
        package: The package, if it is called otherwise.

    Raises:
        MissingExtra: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(package or error.name or module, extra) from error


def require_extra(module: str, package: str, extra: str) -> None:
    """Refuse to go on without a package; nothing is imported.

    Raises:
        MissingExtra: Naming it.
    """
    if find_spec(module) is None:
        raise MissingExtra(package, extra)
