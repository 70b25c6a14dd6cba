"""What a language model must answer: its words belong to the world, its backbone is trained.

An environment needs the `Words` alone (tokenizer, chat template, picture processor), a policy the
`TokenBackbone` alone; whoever answers both in one class derives it from `LanguageModel`. The transformer
loads only when `network()` is called, so an environment never holds it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from unirl_env.models.backbone import Identified, TokenBackbone
from unirl_env.types import Prompt

__all__ = ["Encoded", "LanguageModel", "Words"]


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
