"""What a language model must answer to be an environment and a policy.

A `LanguageModel` has two halves. The frozen half (tokenizer, chat template, picture processor) serves the
environment, the trained half (the transformer) serves the policy. The transformer loads only when
`network()` is called, so an environment never holds it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unirl_env.arguments.copies import FromArguments
from unirl_env.models.denoiser import identity_of
from unirl_env.types import Prompt

__all__ = ["Encoded", "LanguageModel"]


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


class LanguageModel(FromArguments, ABC):
    """One family of autoregressive models.

    It is pickled as its constructor's arguments, without what it has loaded; what the constructor is given is
    said at `Denoiser`.

    Attributes:
        pretrained: The hub id or directory.
        revision: Branch, tag or commit of the hub repository.
        dtype: Of weights and activations.
        device: Where the network is loaded.
        vocab_size: Number of token ids that the output layer knows.
        first_id: The token that the output layer's first row stands for.
        eos_ids: Any of these tokens ends an answer.
        pad_id: Fills what is not text.
        max_context: The most tokens that the network reads at once.
        position_axes: A, the number of position indices of a token: 1 for text, 3 with pictures.
        streams: How many rows of a cache belong to a sequence: B rows for each stream, one after another.
        lora_targets: Names of the network's linear layers that adapters attach to.
        input_spaces: Name of each of `Encoded.inputs` to its shape, padded to its limit, and `"float32"` or
            `"int64"`.
    """

    pretrained: str
    revision: str | None
    dtype: torch.dtype
    device: torch.device
    vocab_size: int
    first_id: int = 0
    eos_ids: tuple[int, ...]
    pad_id: int
    max_context: int
    position_axes: int = 1
    streams: int = 1
    lora_targets: tuple[str, ...]
    input_spaces: Mapping[str, tuple[tuple[int, ...], str]]

    def identity(self) -> dict[str, Any]:
        """What tells this model from another one, as plain values by name; a state goes on in no other."""
        return identity_of(self, "language model")

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

    @abstractmethod
    def network(self) -> nn.Module:
        """A fresh copy of the trained half, in evaluation mode."""

    @abstractmethod
    def hidden(
        self,
        network: nn.Module,
        tokens: Tensor,
        positions: Tensor,
        *,
        inputs: Mapping[str, Tensor] | None = None,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """The last hidden states, from which `head` makes logits.

        Packed, to score: n sequences one after another in a single row, without padding; each sees itself
        alone. With a cache, to generate: B padded rows, continuing what the cache holds.

        Args:
            network: What `network()` returned, adapters included.
            tokens: `[1, L]` packed, or `[B, t]` the next tokens of each row.
            positions: `[A, 1, L]`, or `[A, B, t]`.
            inputs: `Encoded.inputs`, those of all sequences concatenated; with a cache, only together with
                the prompt.
            lengths: `[n]` int64 with sum L, packed only.
            mask: `[B, past + t]` bool, True where a token is real; with a cache only. None: all are.
            cache: A `DynamicCache` of transformers, updated in place.

        Returns:
            `[1, L, D]`, or `[B, t, D]`.
        """

    @abstractmethod
    def head(self, network: nn.Module) -> Tensor:
        """The weight `[V, D]` of the output layer: `logits = hidden @ head.T`.

        Whatever the family does between hidden states and logits stands in one of the two.
        """

    def padded(self, network: nn.Module) -> bool:
        """Whether texts of unequal length can be generated together, padded on the left."""
        return True

    @abstractmethod
    def save_adapters(self, network: nn.Module, directory: str) -> None:
        """Write the adapters as peft's `PeftModel.from_pretrained` loads them."""

    @abstractmethod
    def save_weights(self, network: nn.Module, directory: str) -> None:
        """Write a directory that transformers loads: weights with adapters merged in, config, tokenizer."""
