"""Two backbones as one model: a language model writes what a denoiser draws, and both can be trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unirl_env.errors import ConfigError
from unirl_env.models.denoiser import Denoiser
from unirl_env.models.making import make_model
from unirl_env.models.unified import UnifiedModel
from unirl_env.models.words import Encoded, LanguageModel
from unirl_env.types import Prompt, Sample

__all__ = ["Composed", "Painter", "TwoNetworks", "Writer"]

COPIED = (
    "pretrained",
    "revision",
    "dtype",
    "device",
    "vocab_size",
    "first_id",
    "eos_ids",
    "pad_id",
    "max_context",
    "position_axes",
    "lora_targets",
    "input_spaces",
)


class TwoNetworks(nn.Module):
    """The networks of both backbones side by side.

    Args:
        text: The language model's.
        image: The denoiser's.
    """

    def __init__(self, text: nn.Module, image: nn.Module):
        super().__init__()
        self.text, self.image = text, image

    @property
    def config(self) -> Any:
        """That of the language model, which caches are made for."""
        return self.text.config


class Writer(LanguageModel):
    """A language model's view of `TwoNetworks`.

    Args:
        inner: The adapter that knows the language model alone.
    """

    def __init__(self, inner: LanguageModel):
        self.inner = inner
        for name in COPIED:
            setattr(self, name, getattr(inner, name))

    def identity(self) -> dict[str, Any]:
        """The language model's."""
        return self.inner.identity()

    def encode(self, prompt: Prompt) -> Encoded:
        """The request by the language model's chat template."""
        return self.inner.encode(prompt)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`; see `LanguageModel.decode`."""
        return self.inner.decode(tokens)

    def reply(self, text: str) -> list[int]:
        """What stands between an answer and the next."""
        return self.inner.reply(text)

    def network(self) -> nn.Module:
        """The language model's network alone."""
        return self.inner.network()

    def hidden(self, network: TwoNetworks, *args: Any, **options: Any) -> Tensor:
        """The language model's last hidden states."""
        return self.inner.hidden(network.text, *args, **options)

    def head(self, network: TwoNetworks) -> Tensor:
        """The language model's output layer."""
        return self.inner.head(network.text)

    def padded(self, network: TwoNetworks) -> bool:
        """Whether the language model takes padding."""
        return self.inner.padded(network.text)

    def save_adapters(self, network: TwoNetworks, directory: str) -> None:
        """The language model's adapters."""
        self.inner.save_adapters(network.text, directory)

    def save_weights(self, network: TwoNetworks, directory: str) -> None:
        """The language model."""
        self.inner.save_weights(network.text, directory)


class Painter(Denoiser):
    """A denoiser's view of `TwoNetworks`.

    Args:
        inner: The adapter that knows the denoiser alone.
    """

    def __init__(self, inner: Denoiser):
        self.inner = inner
        self.latent_shape, self.lora_targets = inner.latent_shape, inner.lora_targets

    def identity(self) -> dict[str, Any]:
        """The denoiser's."""
        return self.inner.identity()

    def sigmas(self, num_steps: int) -> Tensor:
        """The denoiser's own noise schedule."""
        return self.inner.sigmas(num_steps)

    def encode(self, prompts: Sequence[Prompt], *, negative: bool = False) -> dict[str, Tensor]:
        """The context of `prompts` by the denoiser's text encoders."""
        return self.inner.encode(prompts, negative=negative)

    def decode(self, latents: Tensor) -> list[Sample]:
        """Finished latents as pictures."""
        return self.inner.decode(latents)

    def network(self) -> nn.Module:
        """The denoiser's network alone."""
        return self.inner.network()

    def read(self, network: TwoNetworks, context: Mapping[str, Tensor]) -> Any:
        """What all steps of an episode share."""
        return self.inner.read(network.image, context)

    def pick(self, context: Any, row: Tensor) -> Any:
        """Of what `read` returned, the contexts at `row`."""
        return self.inner.pick(context, row)

    def velocity(self, network: TwoNetworks, latent: Tensor, sigma: Tensor, context: Any) -> Tensor:
        """The denoiser's velocity."""
        return self.inner.velocity(network.image, latent, sigma, context)

    def save_adapters(self, network: TwoNetworks, directory: str) -> None:
        """The denoiser's adapters."""
        self.inner.save_adapters(network.image, directory)

    def save_weights(self, network: TwoNetworks, directory: str) -> None:
        """The denoiser's weights."""
        self.inner.save_weights(network.image, directory)


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
        self.text = Writer(_made("writer", writer, "language_model", LANGUAGE_MODELS, placed))
        self.image = Painter(_made("painter", painter, "denoiser", DENOISERS, placed))
        self.opens = tuple(self.text.eos_ids)
        self.lora_targets = (*self.text.lora_targets, *self.image.lora_targets)

    @cached_property
    def context_keys(self) -> tuple[str, ...]:
        """The entries of the denoiser's context; asking for them loads its encoders."""
        return tuple(self.image.encode([Prompt("")]))

    def network(self) -> TwoNetworks:
        """Both networks, freshly loaded."""
        return TwoNetworks(self.text.network(), self.image.network()).eval()

    def opening(self, ended_by: int | None) -> list[int]:
        """Nothing: the denoiser reads no tokens."""
        return []

    def context(self, prompt: Prompt, text: str | None) -> dict[str, Tensor]:
        """The text, or the request itself, by the denoiser's text encoders."""
        return self.image.encode([prompt if text is None else replace(prompt, text=text)])

    def parts(self, network: TwoNetworks) -> tuple[nn.Module, ...]:
        """Both."""
        return network.text, network.image

    def private(self, network: TwoNetworks, phase: str) -> Iterable[nn.Parameter]:
        """All of the one that acts in `phase`: they share nothing."""
        return getattr(network, phase).parameters()

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
            getattr(view, how)(network, str(place))


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
