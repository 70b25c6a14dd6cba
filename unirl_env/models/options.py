"""Which arguments of an environment id describe the model: the policy reads the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from unirl_env.arguments.names import FAMILIES, MODEL_OPTIONS
from unirl_env.errors import ConfigError

__all__ = ["ModelChoice", "as_dtype", "model_choice"]


@dataclass(frozen=True)
class ModelChoice:
    """The model that an environment's arguments describe.

    Attributes:
        family: Which of `FAMILIES` named it.
        name: The registered name or dotted path of its adapter, or an adapter.
        options: The adapter's arguments.
        rest: The environment's other arguments.
    """

    family: str
    name: Any
    options: dict[str, Any]
    rest: dict[str, Any]


def model_choice(arguments: Mapping[str, Any], argument: str | None = None) -> ModelChoice:
    """Part an environment's arguments into the model's and the rest.

    `model_options` holds what only one adapter knows. Options that are None take the adapter's default.

    Args:
        arguments: Those of an environment.
        argument: Which of them names the model; None: the one of `FAMILIES` that is there.

    Raises:
        ConfigError: Unless exactly one names a model.
    """
    rest = dict(arguments)
    rest.pop("mode", None)
    families = FAMILIES if argument is None else (argument,)
    named = {family: rest.pop(family, None) for family in families}
    named = {family: model for family, model in named.items() if model is not None}
    # An id that named another family's model, of which a user has said None.
    rest = {name: value for name, value in rest.items() if name not in FAMILIES or value is not None}
    if len(named) != 1:
        raise ConfigError(
            f"One of {', '.join(f'`{family}`' for family in families)} must name a model family, got "
            f"{sorted(named) or 'none'}; try `denoiser='sd3'` or `language_model='causal_lm'`."
        )
    ((family, name),) = named.items()
    special = rest.pop("model_options", None) or {}
    if not isinstance(special, Mapping):
        raise ConfigError(f"`model_options` must be a mapping, got {special!r}; try {{'dtype': 'bfloat16'}}.")
    options = {key: rest.pop(key) for key in MODEL_OPTIONS if key in rest}
    return ModelChoice(family, name, {k: v for k, v in {**options, **special}.items() if v is not None}, rest)


def as_dtype(name: str, value: str | torch.dtype) -> torch.dtype:
    """The floating dtype that `value` is or names; `name` is what an error calls it.

    Raises:
        ConfigError: If it is none.
    """
    dtype = getattr(torch, value, None) if isinstance(value, str) else value
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(f"`{name}` must be a floating dtype of torch, got {value!r}; try 'bfloat16'.")
    return dtype
