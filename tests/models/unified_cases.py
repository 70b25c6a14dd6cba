"""Prompts with and without a picture, and noise, for the tests of unified models."""

import torch

from unirl_env.types import Prompt

PICTURE = torch.linspace(0, 1, 3 * 32 * 32).view(3, 32, 32)
PROMPTS = [
    Prompt("a red circle at the top left"),
    Prompt("make it blue", images=(PICTURE,)),
    Prompt("draw"),
    Prompt("now a much larger one", images=(PICTURE.flip(1),)),
]


def scattered(network):
    generator = torch.Generator().manual_seed(2)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network


def latents(count, seed=0, shape=(4, 8, 8)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator), torch.rand(count, generator=generator)
