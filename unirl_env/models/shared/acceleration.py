"""How a network of diffusers is evaluated: compiled, by another attention, with quantised weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from unirl_env.arguments.values import truth
from unirl_env.errors import ConfigError
from unirl_env.models.shared.outline import is_outlining

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Acceleration:
    """What changes a network's speed or memory, and its results by rounding at most; quantising by more.

    Attributes:
        compile: Compile it by `torch.compile`, block by block where the network names its repeated blocks.
            Where this machine cannot compile, that is said and the network stays as it is.
        attention: A backend of diffusers' attention, such as `"flash"`; None keeps torch's.
        quantization: Configuration of diffusers for frozen weights, with its `quant_method`, such as
            `{"quant_method": "bitsandbytes_4bit", "load_in_4bit": True}`; None keeps them as they are. Only
            adapters can be trained on such weights.

    Raises:
        ConfigError: If one is of another kind.
    """

    compile: bool = False
    attention: str | None = None
    quantization: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        truth("compile", self.compile)
        if self.attention is not None and not isinstance(self.attention, str):
            raise ConfigError(
                f"`attention` must be the name of a backend, got {self.attention!r}; try 'native'."
            )
        if self.quantization is not None:
            self._quantizer()

    def loading(self) -> dict[str, Any]:
        """Arguments of the network's `from_pretrained`.

        Raises:
            ConfigError: If the network is to be read in parts.
        """
        if self.quantization is None:
            return {}
        if is_outlining():
            raise ConfigError(
                "`quantization` must be null with `learner.parallel` other than replicated: weights are "
                "quantised as they are read, and parts of them cannot be; try learner.parallel=replicated."
            )
        return {"quantization_config": self._quantizer()}

    def apply(self, network: nn.Module) -> nn.Module:
        """The network itself, set up.

        Raises:
            ConfigError: If it has no such attention.
        """
        if self.attention is not None:
            self._attend(network)
        if self.compile:
            why = why_not_compiled()
            if why is not None:
                logger.warning("`compile` changes nothing: torch.compile does not work here (%s).", why)
            elif getattr(network, "_repeated_blocks", None):
                network.compile_repeated_blocks()
            else:
                network.compile()
        return network

    def _attend(self, network: Any) -> None:
        if not hasattr(network, "set_attention_backend"):
            raise ConfigError(
                f"`attention` must be null for {type(network).__name__}, which has one alone, got "
                f"{self.attention!r}."
            )
        try:
            network.set_attention_backend(self.attention)
        except (ValueError, RuntimeError, ImportError) as error:
            raise ConfigError(
                f"`attention` must be a backend of diffusers that works here, got {self.attention!r}: "
                f"{error}; try 'native'."
            ) from error

    def _quantizer(self) -> Any:
        from diffusers.quantizers.auto import DiffusersAutoQuantizer

        given = self.quantization
        try:
            if not isinstance(given, Mapping):
                raise TypeError("it is no mapping")
            return DiffusersAutoQuantizer.from_dict(dict(given))
        except Exception as error:  # each backend fails in its own way, often for want of its library
            raise ConfigError(
                f"`quantization` must be a configuration of diffusers whose backend is installed, got "
                f"{given!r}: {error}; try {{'quant_method': 'bitsandbytes_4bit', 'load_in_4bit': true}}."
            ) from error


@cache
def why_not_compiled() -> str | None:
    """Why torch cannot compile here; None where it can. A function of one line is compiled to see."""
    try:
        torch.compile(lambda x: x + 1)(torch.ones(2))
    except Exception as error:  # a missing compiler shows itself in many ways
        return str(error).strip().splitlines()[0]
    return None
