"""What a language model must answer: its words belong to the world, its backbone is trained.

An environment needs the `Words` alone (tokenizer, chat template, picture processor), a policy the
`TokenBackbone` alone; whoever answers both in one class derives it from `LanguageModel`. The transformer
loads only when `network()` is called, so an environment never holds it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unirl_env.errors import PromptError
from unirl_env.models.backbone import Identified, TokenBackbone
from unirl_env.types import Prompt


@dataclass(frozen=True)
class Encoded:
    """A prompt as the network reads it.

    Attributes:
        tokens: `[L]` int64, the chat up to the beginning of the answer.
        inputs: What goes in beside the tokens. Text models: nothing. Vision-language models: `pixel_values`
            `[n_patches, D]` float32, `image_grid_thw` `[n_images, 3]` int64 and `positions` `[3, L]` int64.
    """

    tokens: Tensor
    inputs: Mapping[str, Tensor] = field(default_factory=dict)


class Words(Identified):
    """How texts become tokens and back: the half of a language model that belongs to the world.

    Attributes:
        vocab_size: Number of token ids that may be said.
        first_id: The first of them.
        eos_ids: Any of these tokens ends an answer.
        pad_id: Fills what is not text.
        max_context: The most tokens of prompt and answer together.
        input_spaces: Name of each of `Encoded.inputs` to its shape, padded to its limit, and `"float32"` or
            `"int64"`.
    """

    role = "language model"
    vocab_size: int
    first_id: int = 0
    eos_ids: tuple[int, ...]
    pad_id: int
    max_context: int
    input_spaces: Mapping[str, tuple[tuple[int, ...], str]] = {}

    @abstractmethod
    def encode(self, prompt: Prompt) -> Encoded:
        """The prompt by the model's chat template, ready for the answer; cheap enough to be called again.

        It is open: no token that ends an answer stands at its end. What is typed into it is text, and never
        the token of a mark that ends a turn or stands for a picture.
        """

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, in which the marks of thoughts, calls and answers stand.

        Left out is what ends, pads or begins a text or a turn. A token without text is shown as U+FFFD.
        """

    @abstractmethod
    def reply(self, text: str) -> list[int]:
        """The tokens between the end of an answer and the beginning of the next when the world says `text`.

        The end-of-turn token itself belongs to the answer, not to the reply.
        """


class LanguageModel(Words, TokenBackbone):
    """Both halves of one family of autoregressive models."""


def padded_prompts(
    prompts: Sequence[Prompt],
    rows: Sequence[Sequence[int]],
    width: int,
    pad_id: int,
    *,
    opening: int = 0,
    what: str = "A prompt",
) -> dict[str, Tensor]:
    """Prompts as a context of tokens: `tokens` `[P, W]` int64, padded on the right, and `length` `[P]`.

    Args:
        prompts: For errors.
        rows: The tokens of each.
        width: W.
        pad_id: Stands behind them.
        opening: How many tokens at the end of each are none of the prompt, and in errors not counted.
        what: What an error calls a row.

    Raises:
        PromptError: If one is longer.
    """
    for prompt, row in zip(prompts, rows, strict=True):
        if len(row) > width:
            raise PromptError(
                f"{what} must have at most {width - opening} tokens, got {len(row) - opening} for prompt "
                f"{prompt.id[:60]!r}; try a shorter prompt, or a larger `max_prompt_tokens` among the "
                "model's options."
            )
    tokens = torch.full((len(rows), width), pad_id)
    for row, own in zip(tokens, rows, strict=True):
        row[: len(own)] = torch.as_tensor(own, dtype=torch.int64)
    return {"tokens": tokens, "length": torch.tensor([len(row) for row in rows])}


def padded_inputs(
    encodings: Sequence[Encoded], spaces: Mapping[str, tuple[tuple[int, ...], Any]]
) -> dict[str, Tensor]:
    """The inputs of B encodings, each `[B, *shape]`, zeros where an encoding has less.

    Args:
        encodings: B of them.
        spaces: Name of each input to its shape and dtype, as `Words.input_spaces`.
    """
    padded = {}
    for name, (shape, dtype) in spaces.items():
        rows = torch.zeros(len(encodings), *shape, dtype=getattr(torch, str(dtype)))
        for row, encoded in zip(rows, encodings, strict=True):
            if name in encoded.inputs:
                value = encoded.inputs[name]
                row[tuple(map(slice, value.shape))] = value.to(rows)
        padded[name] = rows
    return padded
