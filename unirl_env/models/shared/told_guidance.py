"""Guidance that is an input of a network, which is another thing than that of two forwards."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from unirl_env.arguments.values import number
from unirl_env.errors import ConfigError


def told_guidance(
    network: type, config: Mapping[str, Any], default: float | None, given: float | None, pretrained: str
) -> float | None:
    """What a network is told of guidance; None where it has no such input.

    Args:
        network: Its class, whose `guidance_embeds` says whether it has.
        config: Its settings.
        default: The pipeline's own; None where the pipeline tells it nothing.
        given: `embedded_guidance`; None takes the default.
        pretrained: What errors call the checkpoint.

    Raises:
        ConfigError: If `given` is no number, or the network has no such input.
    """
    usual = inspect.signature(network.__init__).parameters["guidance_embeds"].default  # type: ignore[misc]
    takes = config.get("guidance_embeds", usual) and default is not None
    if given is not None and not takes:
        raise ConfigError(
            f"`embedded_guidance` must be left out, got {given!r}: the network of {pretrained!r} is told "
            "none; classifier-free guidance is `guidance`, of the policy."
        )
    if not takes:
        return None
    return default if given is None else number("embedded_guidance", given)
