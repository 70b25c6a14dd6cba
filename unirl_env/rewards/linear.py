"""A linear reward of the latent, whose optimum under a KL penalty is known in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unirl_env.errors import ContractError
from unirl_env.rewards.inputs import tensor_of
from unirl_env.types import Prompt, Sample, Scores


class LinearScorer:
    """`r(x) = <weights, x>` of the finished latent.

    `unirl_env.models.gaussian_mixture.tilted_mixture` is its optimum on a Gaussian mixture.

    Args:
        weights: One number per dimension, or one for all of them.
    """

    name = "linear"
    needs = ("latent",)
    pointwise = True

    def __init__(self, weights: float | Sequence[float] = 1.0):
        self.weights = torch.as_tensor(weights, dtype=torch.float32)

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score latents `[D]`.

        Raises:
            ContractError: If a sample has no latent, or one of another dimension than the weights.
        """
        return Scores(value=(points(samples, self.name, weights=self.weights) * self.weights).sum(1))


def points(samples: Sequence[Sample], name: str, **setting: Tensor) -> Tensor:
    """The finished latents as points `[B, D]`, float32 on the CPU.

    Args:
        samples: B of them.
        name: Of the scorer, for errors.
        **setting: What must be one number, or one for each of D dimensions.

    Raises:
        ContractError: If a sample has no latent, one that is no tensor, or one of another dimension.
    """
    every = [tensor_of(sample, "latent", name) for sample in samples]
    found = [latent for latent in every if latent is not None]
    if len(found) < len(samples):
        raise ContractError(f"`{name}` scores latents, got none; try `unirl/GaussianMixture-v0`.")
    latents = torch.stack([latent.float().cpu().flatten() for latent in found])
    for label, numbers in setting.items():
        if numbers.ndim and numbers.shape != latents.shape[1:]:
            raise ContractError(
                f"`{label}` must be one number, or one for each of {latents.shape[1]} dimensions, got "
                f"{list(numbers.shape)}."
            )
    return latents
