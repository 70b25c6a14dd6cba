"""Prompts become tensors once: the encoded prompts that an environment keeps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from unirl_env.models.base import Denoiser
from unirl_env.types import Prompt

__all__ = ["NEGATIVE", "Contexts"]

NEGATIVE = "negative_"
"""Prefix of the encoded negative prompts."""


class Contexts:
    """What a denoiser's text encoders say of prompts, each distinct text asked once and alone.

    Alone, because a text encoder's result may differ in the last bits with the size of its batch.

    Args:
        denoiser: Whose encoders.
        with_negative: Encode negative prompts as well.
        size: How many encoded texts to keep; those of the latest batch are kept in any case.
        device: Where they are kept.
    """

    def __init__(self, denoiser: Denoiser, *, with_negative: bool, size: int, device: torch.device):
        self.denoiser, self.with_negative, self.size, self.device = denoiser, with_negative, size, device
        self._kept: OrderedDict[tuple[str, bool], dict[str, Tensor]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """The context of B prompts, each tensor `[B, ...]` and a copy of its own."""
        context = self._gather(prompts, [prompt.text for prompt in prompts], negative=False)
        if self.with_negative:
            negative = self._gather(prompts, [prompt.negative for prompt in prompts], negative=True)
            context |= {NEGATIVE + name: tensor for name, tensor in negative.items()}
        while len(self._kept) > max(self.size, 2 * len(prompts)):
            self._kept.popitem(last=False)
        return context

    def _gather(self, prompts: Sequence[Prompt], texts: list[str], *, negative: bool) -> dict[str, Tensor]:
        first = dict(zip(reversed(texts), reversed(prompts), strict=True))
        rows = [self._one(text, prompt, negative) for text, prompt in first.items()]
        place = {text: row for row, text in enumerate(first)}
        at = torch.tensor([place[text] for text in texts], device=self.device)
        return {name: torch.cat([row[name] for row in rows])[at] for name in rows[0]}

    def _one(self, text: str, prompt: Prompt, negative: bool) -> dict[str, Tensor]:
        key = (text, negative)
        if key not in self._kept:
            # Inference tensors could not be saved for a learner's backward pass.
            with torch.inference_mode(False), torch.no_grad():
                context = self.denoiser.encode([prompt], negative=negative)
                self._kept[key] = {name: tensor.to(self.device) for name, tensor in context.items()}
        self._kept.move_to_end(key)
        return self._kept[key]
