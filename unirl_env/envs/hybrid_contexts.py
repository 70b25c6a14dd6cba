"""What the image view of a unified model reads beside the tokens: nothing at first, then a finished text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unirl_env.envs.contexts import Contexts
from unirl_env.envs.readings import Readings, prompt_key
from unirl_env.errors import ContractError
from unirl_env.models.denoiser import NEGATIVE
from unirl_env.models.unified import UnifiedModel
from unirl_env.types import Prompt

__all__ = ["HybridContexts"]


class HybridContexts:
    """The contexts of hybrid episodes whose pictures are latents.

    A model of one backbone reads the tokens of the episode, which are observed anyway; then there is nothing
    here but the negative prompts.

    Args:
        model: Whose image view.
        example: A prompt, from whose context the shapes are read.
        with_negative: Encode negative prompts as well.
        size: How many readings to keep; those of the latest batch are kept in any case.
        device: Where they are kept.
    """

    def __init__(
        self, model: UnifiedModel, example: Prompt, *, with_negative: bool, size: int, device: torch.device
    ):
        self.size, self.device = size, device
        self._seen = {NEGATIVE + name for name in model.context_keys}
        self._negatives = Contexts(model.image, with_negative=with_negative, size=size, device=device)
        self._readings = Readings(lambda pair: model.context(*pair), device=device)
        self._blank = self._readings.of([example.text], [(example, None)])

    def blank(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """The context of B episodes whose pictures have not begun: zeros, and the negative prompts."""
        negatives = self._negatives.negative(prompts)
        return {
            **{k: v.new_zeros(len(prompts), *v.shape[1:]) for k, v in self._blank.items()},
            **{name: tensor for name, tensor in negatives.items() if name in self._seen},
        }

    def read(self, prompts: Sequence[Prompt], texts: Sequence[str | None]) -> dict[str, Tensor]:
        """The context of n finished texts, each tensor `[n, ...]`; None where there is no text.

        Raises:
            ContractError: If the model's contexts are not all of one shape.
        """
        if not self._blank:
            return {}
        pairs = list(zip(prompts, texts, strict=True))
        context = self._readings.of(
            [(prompt_key(prompt, prompt.text), text) for prompt, text in pairs], pairs
        )
        self._readings.forget(max(self.size, len(pairs)))
        for name, like in self._blank.items():
            if name not in context or context[name].shape[1:] != like.shape[1:]:
                got = list(context[name].shape[1:]) if name in context else "none"
                raise ContractError(
                    f"`UnifiedModel.context` must give `{name}` {list(like.shape[1:])} for every text, got "
                    f"{got}."
                )
        return context
