"""The environment ids. Entry points are strings, so that registering them imports nothing."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

__all__ = ["IDS", "register_ids"]

IDS: dict[str, dict[str, Any]] = {
    "unirl/SD3-T2I-v0": {
        "denoiser": "sd3",
        "pretrained": "stabilityai/stable-diffusion-3.5-medium",
        "height": 512,
        "width": 512,
        "num_steps": 10,
        "prompts": "scenes_train",
        "scorer": "clip",
    },
    "unirl/TinySD3-T2I-v0": {
        "denoiser": "tiny_sd3",
        "num_steps": 8,
        "prompts": "shapes_train",
        "scorer": "shapes",
    },
    "unirl/GaussianMixture-v0": {
        "denoiser": "gaussian_mixture",
        "num_steps": 10,
        "prompts": ["a sample"],
        "scorer": "linear",
    },
}
"""Id to the keyword arguments of its entry points."""


def register_ids() -> None:
    """Register every id with Gymnasium, once."""
    for name, arguments in IDS.items():
        if name not in gym.registry:
            gym.register(
                name,
                entry_point="unirl_env.build:make_env",
                vector_entry_point="unirl_env.build:make_vector_env",
                kwargs=arguments,
            )
