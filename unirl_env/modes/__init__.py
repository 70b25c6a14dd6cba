"""The modes: what kinds of environments there are, by the argument that names an environment's model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unirl_env.models.options import model_choice
from unirl_env.modes.mode import Mode
from unirl_env.registry import Registry

__all__ = ["MODES", "Mode", "mode_of"]

MODES = Registry(
    "mode",
    {
        "denoiser": "unirl_env.modes.denoising:DENOISING",
        "language_model": "unirl_env.modes.tokens:TOKENS",
        "unified_model": "unirl_env.modes.hybrid:HYBRID",
    },
)


def mode_of(arguments: Mapping[str, Any]) -> Mode:
    """The mode of an environment with these arguments.

    Raises:
        ConfigError: If they name no model, or several.
    """
    return MODES.get(model_choice(arguments).family)
