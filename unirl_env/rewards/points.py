"""A reward of points that is paid near a place, for models whose samples are points: `near`.

Narrow, it is sparse; two of them in a `weighted_sum` pull apart; beside `linear`, one of them where `linear`
does not ask for it is what a policy can exploit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unirl_env.arguments.values import number
from unirl_env.errors import ConfigError
from unirl_env.rewards.linear import points
from unirl_env.types import Prompt, Sample, Scores


class NearScorer:
    """`exp(-|x - place|^2 / (2 width^2))` of the finished latent: 1 at the place, nothing far from it.

    It is smooth, so that expectations on a grid are exact to many digits.

    Args:
        place: One number per dimension, or one for all of them.
        width: How near is near.

    Raises:
        ConfigError: If `width` is not positive.
    """

    name = "near"
    needs = ("latent",)
    pointwise = True

    def __init__(self, place: float | Sequence[float] = 0.0, width: float = 1.0):
        self.place, self.width = torch.as_tensor(place, dtype=torch.float32), number("width", width)
        if not self.width > 0:
            raise ConfigError(f"`width` must be positive, got {width}; try 0.3.")

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score latents `[D]`.

        Raises:
            ContractError: If a sample has no latent, or one of another dimension than the place.
        """
        away = (points(samples, self.name, place=self.place) - self.place) / self.width
        return Scores(torch.exp(-away.square().sum(1) / 2))
