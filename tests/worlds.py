"""A model of any latent shape, small enough for hundreds of episodes a second, and worlds made of it."""

from collections import Counter

import torch
from torch import nn

import unirl_env.functional as F
from unirl_env.envs.denoising import DenoiseVectorEnv
from unirl_env.models.denoiser import Denoiser
from unirl_env.types import Sample, Scores
from unirl_env.wrappers.reward import RewardWrapper

PROMPTS = ["a cat", "a dog", "a house", "a tree"]


class PlainNetwork(nn.Module):
    """A velocity from the whole latent, the noise level and two numbers of the prompt."""

    def __init__(self, size, width=16):
        super().__init__()
        self.inner = nn.Linear(size + 3, width)
        self.outer = nn.Linear(width, size)

    def forward(self, latent, sigma, pooled):
        rows = torch.cat([latent.flatten(1), sigma[:, None].to(latent.dtype), pooled.to(latent.dtype)], dim=1)
        return self.outer(torch.tanh(self.inner(rows))).view_as(latent)


class PlainDenoiser(Denoiser):
    """Latents of any shape that are their own decoding; `encoded` counts the texts that were encoded."""

    lora_targets = ("inner", "outer")

    def __init__(self, latent_shape=(3, 4, 4), dtype=torch.float32):
        self.latent_shape, self.dtype = tuple(latent_shape), dtype
        self.encoded = Counter()

    def sigmas(self, num_steps):
        return F.flow_sigmas(num_steps)

    def encode(self, prompts, *, negative=False):
        texts = [prompt.negative if negative else prompt.text for prompt in prompts]
        self.encoded.update(texts)
        pooled = [[float(len(text)), float(sum(map(ord, text)) % 97)] for text in texts]
        return {"prompt_embeds": torch.tensor(pooled)[:, None] / 50, "pooled": torch.tensor(pooled) / 50}

    def decode(self, latents):
        if len(self.latent_shape) == 3 and self.latent_shape[0] == 3:
            return [Sample(image=torch.sigmoid(latent.float())) for latent in latents]
        return [Sample(latent=latent.float()) for latent in latents]

    def network(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return PlainNetwork(torch.Size(self.latent_shape).numel()).to(self.dtype).eval()

    def velocity(self, network, latent, sigma, context):
        return network(latent.to(self.dtype), sigma, context["pooled"])


def brightness(samples, prompts):
    """The mean of what was made."""
    made = [sample.image if sample.image is not None else sample.latent for sample in samples]
    return Scores(torch.stack([value.float().mean() for value in made]))


def world(denoiser=None, *, num_envs=4, scored=False, **options):
    """A denoising environment of the plain model."""
    options = {"prompts": PROMPTS, "num_steps": 3, "info_objects": True, **options}
    env = DenoiseVectorEnv(denoiser or PlainDenoiser(), num_envs=num_envs, **options)
    return RewardWrapper(env, brightness) if scored else env


def maker(denoiser, **options):
    """`make_env` of a `Rollout`."""

    def make_env(num_envs, num_steps=None):
        own = {} if num_steps is None else {"num_steps": num_steps}
        return world(
            denoiser,
            num_envs=num_envs,
            scored=True,
            array_backend="torch",
            autoreset_mode="disabled",
            **{**options, **own},
        )

    return make_env
