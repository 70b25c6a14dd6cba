"""Which arguments of an environment id describe the model: the policy reads the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from unirl_env.errors import ConfigError

__all__ = ["MODEL_OPTIONS", "as_dtype", "model_options"]

MODEL_OPTIONS = (
    "pretrained",
    "revision",
    "height",
    "width",
    "dtype",
    "device",
    "offload",
    "max_sequence_length",
    "schedule",
    "rows_per_forward",
)


def model_options(arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Part an environment's arguments into the model's name, the model's options, and the rest.

    `denoiser_options` holds what only one family knows. Options that are None take the family's default.

    Raises:
        ConfigError: If no `denoiser` is named.
    """
    rest = dict(arguments)
    name = rest.pop("denoiser", None)
    if not name:
        raise ConfigError("`denoiser` must name a model family, got none; try `denoiser='sd3'`.")
    special = rest.pop("denoiser_options", None) or {}
    options = {key: rest.pop(key) for key in MODEL_OPTIONS if key in rest}
    return name, {k: v for k, v in {**options, **special}.items() if v is not None}, rest


def as_dtype(name: str, value: str | torch.dtype) -> torch.dtype:
    """The floating dtype that `value` is or names; `name` is what an error calls it.

    Raises:
        ConfigError: If it is none.
    """
    dtype = getattr(torch, value, None) if isinstance(value, str) else value
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(f"`{name}` must be a floating dtype of torch, got {value!r}; try 'bfloat16'.")
    return dtype
