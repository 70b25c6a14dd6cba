"""Trust regions of latents in either unit: nats of the joint policies, or a mean over the elements."""

from __future__ import annotations

from typing import Any

import unirl_env.functional as F
from unirl_env.errors import ConfigError

__all__ = ["check_either", "per_element", "threshold"]


def per_element(config: Any, name: str, elements: int, default: float | None = None) -> float | None:
    """The setting `name` on the scale of mean-reduced log-probs.

    Args:
        config: An `AgentConfig` with the settings `name` and `<name>_nats`.
        name: Of the one that is given per element.
        elements: D, of one action.
        default: Where neither is given.
    """
    nats = getattr(config, f"{name}_nats")
    if nats is not None:
        return F.nats_to_mean(nats, elements)
    value = getattr(config, name)
    return default if value is None else value


def threshold(
    config: Any, name: str, elements: int, value: float, quantity: str
) -> dict[str, tuple[float, str]]:
    """An entry of `AgentConfig.thresholds`, under the name of the setting that was given."""
    given = name if getattr(config, f"{name}_nats") is None else f"{name}_nats / {elements}"
    return {given: (value, quantity)}


def check_either(knobs: Any, name: str, prefix: str = "") -> None:
    """Refuse `name` and `<name>_nats` at once.

    Raises:
        ConfigError: Naming both, their values and the remedy.
    """
    value, nats = getattr(knobs, name), getattr(knobs, f"{name}_nats")
    if value is not None and nats is not None:
        raise ConfigError(
            f"`{prefix}{name}` and `{prefix}{name}_nats` must not both be given, got {value} and {nats}: "
            "they are one bound in two units; try either of them alone."
        )
