"""Clips that begin with a picture: a prompt brings one, which is encoded beside its text."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unirl_env.errors import PromptError
from unirl_env.media.pixels import load_picture, to_pil
from unirl_env.models.shared.of_video import OfVideo
from unirl_env.types import Prompt


class FromPicture(OfVideo):
    """A family of clips whose prompts bring one picture; what follows from it is part of the context."""

    def check_prompt(self, prompt: Prompt) -> None:
        """Refuse a prompt without a picture, or with several."""
        if len(prompt.images) != 1:
            raise PromptError(
                f"A prompt must bring one picture to begin with, got {len(prompt.images)} in "
                f"{prompt.id[:60]!r}; try `images` of one, or an id of clips from text."
            )

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt], *, negative: bool = False) -> dict[str, Tensor]:
        """What the encoders say of texts and of pictures, each tensor `[B, ...]`."""
        for prompt in prompts:
            self.check_prompt(prompt)
        rows = [self._begin(to_pil(load_picture(prompt.images[0]))) for prompt in prompts]
        seen = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        return {**super().encode(prompts, negative=negative), **seen}

    @abstractmethod
    def _begin(self, picture: Any) -> dict[str, Tensor]:
        """What a clip that begins with a PIL picture is told of it, each `[1, ...]`."""
