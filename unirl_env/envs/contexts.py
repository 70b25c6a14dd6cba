"""Prompts become tensors once: the encoded prompts that an environment keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from unirl_env.envs.readings import Readings, prompt_key
from unirl_env.models.denoiser import NEGATIVE, Denoiser
from unirl_env.types import Prompt

__all__ = ["Contexts", "context_spaces"]

LARGEST = 2**31 - 1
"""Token ids lie far below; a box up to the end of int64 could not be sampled from."""


class Contexts:
    """What a denoiser's text encoders say of prompts.

    Args:
        denoiser: Whose encoders.
        with_negative: Encode negative prompts as well.
        size: How many encoded texts to keep; those of the latest batch are kept in any case.
        device: Where they are kept.
    """

    def __init__(self, denoiser: Denoiser, *, with_negative: bool, size: int, device: torch.device):
        self.denoiser, self.with_negative, self.size = denoiser, with_negative, size
        self._readings = Readings(self._encoded, device=device)

    def __len__(self) -> int:
        return len(self._readings)

    def of(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """The context of B prompts, each tensor `[B, ...]` and a copy of its own."""
        context = self._gather(prompts, [prompt.text for prompt in prompts], negative=False)
        return {**context, **self.negative(prompts)}

    def negative(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """What of it is about the negative prompts; nothing unless they are encoded."""
        context = {}
        if self.with_negative:
            found = self._gather(prompts, [prompt.negative for prompt in prompts], negative=True)
            context = {NEGATIVE + name: tensor for name, tensor in found.items()}
        self._readings.forget(max(self.size, 2 * len(prompts)))
        return context

    def _encoded(self, ask: tuple[Prompt, bool]) -> dict[str, Tensor]:
        prompt, negative = ask
        return self.denoiser.encode([prompt], negative=negative)

    def _gather(self, prompts: Sequence[Prompt], texts: list[str], *, negative: bool) -> dict[str, Tensor]:
        keys = [(prompt_key(*pair), negative) for pair in zip(prompts, texts, strict=True)]
        return self._readings.of(keys, [(prompt, negative) for prompt in prompts])


def context_spaces(context: Mapping[str, Tensor]) -> dict[str, spaces.Box]:
    """The space of each entry of a context `[B, ...]`."""
    boxes = {}
    for name, tensor in context.items():
        shape = tuple(tensor.shape[1:])
        if tensor.is_floating_point():
            boxes[name] = spaces.Box(-np.inf, np.inf, shape, np.float32)
        else:
            boxes[name] = spaces.Box(0, LARGEST, shape, np.int64)
    return boxes
