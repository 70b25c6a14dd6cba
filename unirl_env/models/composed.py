"""Two backbones as one model: a language model writes what a denoiser draws, and both can be trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unirl_env.errors import ConfigError, ContractError
from unirl_env.models.denoiser import Denoiser
from unirl_env.models.making import make_model
from unirl_env.models.unified import UnifiedModel
from unirl_env.models.words import LanguageModel
from unirl_env.types import Prompt

OBSERVED = (
    *("phase", "tokens", "length", "prompt_length"),
    *("latent", "sigma", "sigma_next", "step", "stochastic"),
)
"""What an episode that writes and then draws is observed by, beside the context."""


class TwoNetworks(nn.Module):
    """The networks of both backbones side by side.

    Args:
        text: The language model's.
        image: The denoiser's.
    """

    def __init__(self, text: nn.Module, image: nn.Module):
        super().__init__()
        self.text, self.image = text, image


class Composed(UnifiedModel):
    """A language model and a denoiser: prompt enhancement in which the generator learns, too.

    The text is drawn once it is finished: the denoiser's own encoders read it. Adapters and weights are
    exported to `text/` and `image/`, each in the form of its own library.

    Args:
        writer: The language model: `{"language_model": name, option: value}`.
        painter: The denoiser: `{"denoiser": name, option: value}`.
        dtype: Of weights and activations of both, unless their options say another.
        device: Where both live, likewise.

    Raises:
        ConfigError: If one of them is not described.
    """

    pretrained = None

    def __init__(
        self,
        *,
        writer: Mapping[str, Any] | LanguageModel,
        painter: Mapping[str, Any] | Denoiser,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
    ):
        from unirl_env.models import DENOISERS, LANGUAGE_MODELS

        placed = {"dtype": dtype, "device": device}
        self.text = _made("writer", writer, "language_model", LANGUAGE_MODELS, placed)
        self.image = _made("painter", painter, "denoiser", DENOISERS, placed)
        self.image.require_pictures("painter")
        self.opens = tuple(self.text.eos_ids)
        self.lora_targets = (*self.text.lora_targets, *self.image.lora_targets)

    @cached_property
    def context_keys(self) -> tuple[str, ...]:
        """The entries of the denoiser's context; asking for them loads its encoders.

        Raises:
            ContractError: If one has the name of what a text is observed by.
        """
        found = tuple(self.image.encode([Prompt("")]))
        if taken := [name for name in found if name in OBSERVED]:
            raise ContractError(
                f"A context of {type(self.image).__name__} must have no entry by the name of another "
                f"observation, got {', '.join(taken)}; try another name in `encode`."
            )
        return found

    def network(self) -> TwoNetworks:
        """Both networks, freshly loaded."""
        return TwoNetworks(self.text.network(), self.image.network()).eval()

    def opening(self, ended_by: int | None) -> list[int]:
        """Nothing: the denoiser reads no tokens."""
        return []

    def context(self, prompt: Prompt, text: str | None) -> dict[str, Tensor]:
        """The text, or the request itself, by the denoiser's text encoders."""
        return self.image.encode([prompt if text is None else replace(prompt, text=text)])

    def part(self, network: TwoNetworks, phase: str) -> nn.Module:
        """The one that acts in `phase`."""
        return getattr(network, phase)

    def private(self, network: TwoNetworks, phase: str) -> Iterable[nn.Parameter]:
        """All of the one that acts in `phase`: they share nothing."""
        return self.part(network, phase).parameters()

    def save_adapters(self, network: TwoNetworks, directory: str) -> None:
        """Write both backbones' adapters to `text/` and `image/`."""
        self._save("save_adapters", network, directory)

    def save_weights(self, network: TwoNetworks, directory: str) -> None:
        """Write both backbones' weights to `text/` and `image/`."""
        self._save("save_weights", network, directory)

    def _save(self, how: str, network: TwoNetworks, directory: str) -> None:
        for name, view in (("text", self.text), ("image", self.image)):
            place = Path(directory) / name
            place.mkdir(parents=True, exist_ok=True)
            getattr(view, how)(self.part(network, name), str(place))


def _made(name: str, given: Any, key: str, registry: Any, placed: Mapping[str, Any]) -> Any:
    """An adapter, or the one that `given` describes."""
    if isinstance(given, Denoiser | LanguageModel):
        return given
    if not isinstance(given, Mapping) or key not in given:
        raise ConfigError(
            f"`{name}` must be a mapping with `{key}`, got {given!r}; try {name}={{'{key}': 'tiny_...'}}."
        )
    options = {**placed, **given}
    return make_model(registry, options.pop(key), options, f"`{name}`")
