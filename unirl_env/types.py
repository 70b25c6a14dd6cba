"""The nouns that travel between the floors: Prompt, Sample, Scores.

Shapes in brackets: B episodes, C channels, H x W pixels, F frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Number
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from unirl_env.arguments.indices import as_array, as_mask
from unirl_env.errors import ContractError

__all__ = ["Prompt", "Sample", "Scorer", "Scores"]


FAULTS = 5
"""So many different ones are kept of a batch, the last."""


@dataclass(frozen=True)
class Prompt:
    """One request to a generative model.

    Attributes:
        text: What to generate.
        id: A stable key of the prompt; noise is derived from it. Defaults to the text.
        negative: What to steer away from under classifier-free guidance.
        metadata: Anything a scorer needs (the expected answer, object counts, ...).
        messages: Chat turns `{"role": ..., "content": ...}` for language models, of which `text` is then only
            the short name; without any, the chat is one user turn of `text`.
        images: Pictures that belong to the request, in the order of the chat: paths, `data:` URIs, or tensors
            `[3, H, W]` in [0, 1].
    """

    text: str
    id: str = ""
    negative: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False)
    messages: tuple[Mapping[str, Any], ...] = field(default=(), compare=False)
    images: tuple[Any, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", self.text)


@dataclass(frozen=True)
class Sample:
    """What a finished episode produced; exactly the fields that its model family fills.

    Attributes:
        image: `[3, H, W]` float32 in [0, 1]; None of a text that never came to its picture.
        pictures: `[K, 3, H, W]` float32, all that were drawn from one text, where that is several.
        video: `[F, 3, H, W]`, uint8 as the library's own models make it, or float32 in [0, 1].
        text: The generated text; in a conversation, the last turn.
        before: What stands right before the text: the last words of the prompt, with the marks by which a
            chat template opens a thought; empty where that is unknown.
        latent: The final state itself, for models without a decoder.
        tokens: `[n]` int64, all tokens after the prompt.
        truncated: Whether the length limit ended the text, and not the model.
    """

    image: Tensor | None = None
    pictures: Tensor | None = None
    video: Tensor | None = None
    text: str | None = None
    latent: Tensor | None = None
    tokens: Tensor | None = None
    truncated: bool = False
    before: str = ""


@dataclass(frozen=True)
class Scores:
    """The judgement on a batch of samples.

    A failed score is data: NaN in `value` and False in `valid`. It is counted, and left out of the
    statistics of its group; it never becomes a zero.

    Attributes:
        value: `[B]` float32, the number that is trained on. Given as a list, an array or a tensor of any
            device of real numbers; truth values count as 1 and 0.
        parts: Named components, each `[B]` float32, for logs and for advantages over several rewards.
        valid: `[B]` bool; by default, where `value` is finite.
        faults: What was said of the failures, for people; `rewards.scoring.score_safely` gathers it.

    Raises:
        ContractError: If a field has another shape, or is nothing but real numbers, or truth values in
            `valid`: complex numbers, texts, objects and masked arrays, whose mask would be lost, are refused.
    """

    value: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    valid: Tensor = None  # type: ignore[assignment]  # never None once it is made
    faults: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        value = _reals("Scores.value", self.value)
        if value.ndim != 1:
            raise ContractError(
                f"`Scores.value` must be one number per sample [B], got shape {list(value.shape)}."
            )
        valid = torch.isfinite(value)
        if self.valid is not None:
            valid = valid & _truths("Scores.valid", self.valid, len(value))
        if not isinstance(self.parts, Mapping) or not all(isinstance(name, str) for name in self.parts):
            raise ContractError(f"`Scores.parts` must be a mapping from names, got {self.parts!r:.100}.")
        parts = {}
        for name, part in self.parts.items():
            parts[name] = _reals(f"Scores.parts[{name!r}]", part)
            if parts[name].shape != value.shape:
                raise ContractError(
                    f"`Scores.parts[{name!r}]` must have shape {list(value.shape)} like `value`, "
                    f"got {list(parts[name].shape)}."
                )
        object.__setattr__(self, "value", torch.where(valid, value, torch.nan))
        object.__setattr__(self, "valid", valid)
        object.__setattr__(self, "parts", parts)

    def __len__(self) -> int:
        return self.value.shape[0]

    @classmethod
    def failed(cls, count: int) -> Scores:
        """`count` invalid scores."""
        return cls(value=torch.full((count,), torch.nan))

    @classmethod
    def cat(cls, scores: Iterable[Scores]) -> Scores:
        """One after another; a part that one of them lacks is NaN there.

        A failed batch has no parts at all, so scores of the same scorer may differ in them.
        """
        blocks = list(scores)
        if not blocks:
            return cls.failed(0)
        names = dict.fromkeys(name for block in blocks for name in block.parts)
        return cls(
            value=torch.cat([block.value for block in blocks]),
            parts={
                name: torch.cat(
                    [block.parts.get(name, torch.full((len(block),), torch.nan)) for block in blocks]
                )
                for name in names
            },
            valid=torch.cat([block.valid for block in blocks]),
            faults=tuple(dict.fromkeys(fault for block in blocks for fault in block.faults))[-FAULTS:],
        )


def _is_usual(value: Any, dtype: torch.dtype) -> TypeGuard[Tensor]:
    """Whether nothing needs to be read or refused; asked first, because an episode may end at every step."""
    return (
        type(value) is Tensor
        and value.dtype is dtype
        and value.layout is torch.strided
        and value.device.type == "cpu"
    )


def _truths(name: str, value: Any, count: int) -> Tensor:
    """Truth values of any kind as bool `[count]` on the CPU, not to be written to."""
    if _is_usual(value, torch.bool) and value.shape == (count,):
        return value.detach()
    return torch.from_numpy(as_mask(name, value, count, error=ContractError).copy())


def _reals(name: str, value: Any) -> Tensor:
    """Real numbers of any kind as float32 on the CPU; the shape is the caller's affair."""
    if _is_usual(value, torch.float32):
        return value.detach().resolve_neg().clone()
    if isinstance(value, Number):
        value = np.asarray(value)
    elif isinstance(value, list | tuple):
        plain = [each.item() if isinstance(each, Tensor) and not each.ndim else each for each in value]
        try:
            value = np.array(plain, dtype=None if plain else np.float32)
        except (TypeError, ValueError):
            value = None  # lists of several lengths, and what else is no array
    array = as_array(value)
    if array is None or array.dtype.kind not in "biuf":
        got = type(value).__name__ if array is None else array.dtype
        raise ContractError(
            f"`{name}` must be real numbers, got {got}; try a float32 tensor, with `valid` False where a "
            "number is missing."
        )
    # Not by numpy, which warns of numbers that are infinite in float32.
    return torch.from_numpy(array.copy()).float()


@runtime_checkable
class Scorer(Protocol):
    """Anything that judges samples: a function, an object with state, or a remote service."""

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt], /) -> Scores:
        """Score `samples[i]` against `prompts[i]`."""
        ...
