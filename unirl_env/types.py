"""The nouns that travel between the floors: Prompt, Sample, Scores.

Shapes in brackets: B episodes, C channels, H x W pixels, F frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from unirl_env.errors import ContractError

__all__ = ["Prompt", "Sample", "Scorer", "Scores"]


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
        video: `[F, 3, H, W]` float32 in [0, 1].
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
        value: `[B]` float32, the number that is trained on.
        parts: Named components, each `[B]` float32, for logs and for advantages over several rewards.
        valid: `[B]` bool; by default, where `value` is finite.
    """

    value: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    valid: Tensor | None = None

    def __post_init__(self) -> None:
        value = torch.as_tensor(self.value, dtype=torch.float32).detach().cpu()
        if value.ndim != 1:
            raise ContractError(
                f"`Scores.value` must be one number per sample [B], got shape {list(value.shape)}."
            )
        valid = torch.isfinite(value)
        if self.valid is not None:
            valid = valid & torch.as_tensor(self.valid, dtype=torch.bool).cpu()
        parts = {}
        for name, part in self.parts.items():
            parts[name] = torch.as_tensor(part, dtype=torch.float32).detach().cpu()
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
        )


@runtime_checkable
class Scorer(Protocol):
    """Anything that judges samples: a function, an object with state, or a remote service."""

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score `samples[i]` against `prompts[i]`."""
        ...
