"""What an engine can be told, held against what it takes before it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unirl_env.arguments.signatures import options_of, require_own
from unirl_env.rollouts.engines import ENGINES

__all__ = ["check_engine_options"]

OURS = {"actor", "pretrained"}
"""What whoever makes an engine gives it."""


def check_engine_options(engine: str, options: Mapping[str, Any], called: str = "engine_options") -> None:
    """Refuse options that the engine does not take; whether it fits to an environment is not asked.

    Args:
        engine: Its name, or a dotted path.
        options: What it shall be told.
        called: What an error calls them.

    Raises:
        ConfigError: Naming the option, and the nearest that there is.
    """
    known = options_of(ENGINES.get(engine))
    known = None if known is None else known - OURS
    require_own(options, known, f"`{called}` must be options of the engine {engine!r}")
