"""Clips that begin with a picture: a prompt brings one, which is encoded beside its text."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unirl_env.errors import ConfigError, ContractError, PromptError
from unirl_env.media.pixels import load_picture, to_pil
from unirl_env.models.shared.of_video import OfVideo
from unirl_env.types import Prompt

FIRST = "first_latent"
"""The entry of a context that is the picture's own latent, where the clip's begins with it."""


class FromPicture(OfVideo):
    """A family of clips whose prompts bring one picture; what follows from it is part of the context.

    Of some, the picture's own latent is the first of the clip's in time, and no step moves it (`leads`). It
    is then no part of the state, of actions or of their probability, which are of the others alone: it is put
    before them where the network reads them, at time 0, and where they are decoded.

    Args:
        pretrained: A hub id or a directory.
        **options: Those of `OfVideo`.

    Attributes:
        leads: Whether the picture's latent begins the clip's.
        along: The axis of a batch of latents that frames lie in.

    Raises:
        ConfigError: If nothing would move, because the picture is all of the clip.
    """

    leads: bool = False
    along: ClassVar[int] = 2

    def __init__(self, pretrained: str, **options: Any):
        super().__init__(pretrained, **options)
        # A prompt that is filled up with copies would have its picture encoded as often.
        self.prompts_at_once = 1

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
        """What a clip that begins with a PIL picture is told of it, each `[1, ...]`.

        Of one that `leads`, `FIRST` is its latent in float32, as the pipeline's loop holds it.
        """

    def _fit(self, height: int | None, width: int | None) -> None:
        super()._fit(height, width)
        if not self.leads:
            return
        if self.latent_frames == 1:
            raise ConfigError(
                f"`num_frames` must be more than 1 for {self.family}, whose first one is the picture, got 1; "
                f"try {self.frames}."
            )
        shape = list(self.latent_shape)
        shape[self.along - 1] -= shape[self.along - 1] // self.latent_frames
        self.latent_shape = tuple(shape)

    def _led(self, latents: Tensor, context: Mapping[str, Tensor] | None) -> Tensor:
        """Latents `[N, ...]` behind those of their pictures, in float32."""
        if context is None or FIRST not in context:
            raise ContractError(
                f"`context` must hold `{FIRST}`, with which the clips of {self.family} begin, got "
                f"{None if context is None else sorted(context)}; try that of `encode`."
            )
        first = context[FIRST].to(latents.device)
        return torch.cat([first, latents.to(first.dtype)], self.along)

    def _velocity(
        self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Mapping[str, Tensor]
    ) -> Tensor:
        if not self.leads:
            return super()._velocity(network, latent, sigma, context)
        velocity = super()._velocity(network, self._led(latent, context), sigma, context)
        moving = latent.shape[self.along]
        return velocity.narrow(self.along, velocity.shape[self.along] - moving, moving)

    def _times(self, sigma: Tensor) -> Tensor:
        """Of a clip that a picture leads one for each token, 0 for the picture's."""
        times = super()._times(sigma)
        if not self.leads:
            return times
        moves = torch.ones(self.num_tokens, device=times.device)
        moves[: self.num_tokens // self.latent_frames] = 0
        return times[:, None] * moves

    def _finished(self, latents: Tensor, context: Mapping[str, Tensor] | None) -> Tensor:
        finished = super()._finished(latents, context)
        return self._led(finished, context) if self.leads else finished
