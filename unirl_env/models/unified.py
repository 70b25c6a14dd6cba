"""What a model that writes and then draws must answer to be an environment and a policy.

A `UnifiedModel` is two views of one backbone: `text`, a language model, and `image`, either a denoiser (its
pictures are latents) or a second vocabulary (its pictures are tokens). Each view takes its `part` of the very
network that `network()` returns.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor, nn

from unirl_env.models.backbone import Backbone, TokenBackbone
from unirl_env.models.denoiser import Denoiser
from unirl_env.models.words import LanguageModel
from unirl_env.types import Prompt, Sample


class PictureTokens(TokenBackbone):
    """A view whose pictures are sentences of `num_tokens` tokens out of a vocabulary of their own.

    Its ids begin at `first_id`, behind those of the text, so that one row of tokens holds text and picture:
    row i of `head` is the id `first_id + i`. There is no token that ends a picture.
    """

    role = "language model"
    num_tokens: int

    @abstractmethod
    def pictures(self, tokens: Tensor) -> list[Sample]:
        """Finished pictures `[B, num_tokens]` int64 (ids from `first_id`) as B samples with an `image`."""


class SharedBackbone(Backbone):
    """What shares the network of another one: a view that can be played and trained alone, or its model.

    Attributes:
        whole: What loads and saves them.
    """

    whole: Backbone

    def network(self) -> nn.Module:
        """The whole network, freshly loaded."""
        return self.whole.network()

    def save_adapters(self, network: nn.Module, directory: str) -> None:
        """Write the whole's adapters."""
        self.whole.save_adapters(network, directory)

    def save_weights(self, network: nn.Module, directory: str) -> None:
        """Write the whole's weights."""
        self.whole.save_weights(network, directory)


class UnifiedModel(Backbone):
    """One family of models that write text and then draw.

    Attributes:
        pretrained: The hub id or directory; None where there is none.
        text: The view of a language model. Its `eos_ids` end the text; they include `opens`.
        image: The view of a denoiser, or of a language model over picture tokens.
        discrete: Whether pictures are tokens.
        opens: The tokens of the text after which the picture begins. Another end leaves the episode without
            a picture.
        context_keys: The entries of a hybrid observation that the image view reads beside the latent. One
            backbone: `tokens`, `length` and the inputs of the text view. Two: what `context` returns.
        max_images: Pictures that a prompt may bring; 0 where the model draws from text alone.
    """

    role = "unified model"
    discrete: ClassVar[bool] = False
    pretrained: str | None
    text: LanguageModel
    image: Denoiser | PictureTokens
    opens: tuple[int, ...]
    context_keys: tuple[str, ...]
    max_images: int = 0

    @abstractmethod
    def opening(self, ended_by: int | None) -> list[int]:
        """The tokens that the world writes between the text and the picture.

        Args:
            ended_by: The token of `opens` that ended the text, which stands before them; None where the
                picture follows the prompt at once.
        """

    def context(self, prompt: Prompt, text: str | None) -> dict[str, Tensor]:
        """What the image view reads, each `[1, ...]`; nothing if it reads the tokens.

        Args:
            prompt: The request.
            text: What was written; None where the text phase is empty and the request itself is drawn.
        """
        return {}

    def part(self, network: nn.Module, phase: str) -> nn.Module:
        """What the view of `phase` (`"text"` or `"image"`) takes of the network; one backbone is one.

        Adapters attach to each part by itself.
        """
        return network

    def private(self, network: nn.Module, phase: str) -> Iterable[nn.Parameter]:
        """The weights that only `phase` (`"text"` or `"image"`) reads; they are frozen with it."""
        return ()
