"""Pipelines of diffusers whose guidance is a part of the checkpoint, a `guider`."""

from __future__ import annotations

from typing import Any

from unirl_env.models.shared.loading import Source

PLAIN = {
    "guidance_rescale": 0.0,
    "use_original_formulation": False,
    "start": 0.0,
    "stop": 1.0,
    "enabled": True,
}
"""Settings of a guider that takes `u + g (c - u)` at every step."""


def why_unguided(source: Source, kind: Any) -> str:
    """Why guidance of episodes would not be what a checkpoint's guider does; empty where it is.

    Its scale is not read: that is the policy's.

    Args:
        source: The checkpoint.
        kind: The guider's class, as the pipeline's index names it.

    Raises:
        ModelNotFound: If its settings are not there.
    """
    from diffusers import ClassifierFreeGuidance

    usual = ClassifierFreeGuidance.__name__
    if kind != usual:
        return f"its guider is a {kind}, which is not u + g (c - u); try a {usual}"
    config = source.load(ClassifierFreeGuidance.load_config, subfolder="guider")
    odd = {name: config[name] for name, value in PLAIN.items() if config.get(name, value) != value}
    return (
        f"its guider has {odd}, which is not u + g (c - u); try {PLAIN} in guider_config.json" if odd else ""
    )
