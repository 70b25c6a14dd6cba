"""A user's package: it is written to a folder outside the repository, and imported from there."""

from pathlib import Path

INIT = '''
"""Registers what there is, as it is imported."""

import unirl_env

unirl_env.register(
    "{name}/Orbit-v0",
    denoiser="{name}.parts:Orbit",
    num_steps=3,
    prompts=["near", "far"],
    scorer="{name}.parts:roundness",
)
unirl_env.register(
    "{name}/Murmur-v0",
    language_model="{name}.parts:Murmur",
    max_new_tokens=3,
    max_prompt_tokens=24,
    prompts=["1+2=?", "3+4=?"],
    scorer="{name}.parts:brevity",
)
unirl_env.register(
    "{name}/Sketch-v0",
    unified_model="{name}.parts:Sketch",
    max_new_tokens=4,
    max_prompt_tokens=32,
    num_steps=2,
    prompts=["draw a scarlet box", "draw a blue ball"],
    scorer="{name}.parts:brevity",
)
unirl_env.register(
    "{name}/Wobble-v0",
    denoiser="{name}.parts:Orbit",
    env="{name}.parts:Wobble",
    prompts=["a"],
)
'''

PARTS = '''
"""Models whose constructors take nothing, a reward for each, and an environment of their own."""

import torch
from torch import nn

import unirl_env.functional as F
from unirl_env.envs import DenoiseVectorEnv
from unirl_env.models import Denoiser
from unirl_env.models.composed import Composed
from unirl_env.models.tiny import TinyQwen3
from unirl_env.types import Sample, Scores


class Pull(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, latent, sigma):
        return self.outer(torch.tanh(self.inner(torch.cat([latent, sigma[:, None]], 1))))


class Orbit(Denoiser):
    latent_shape, lora_targets = (2,), ("inner", "outer")
    made = 0

    def __init__(self):
        Orbit.made += 1

    def sigmas(self, num_steps):
        return F.flow_sigmas(num_steps)

    def encode(self, prompts, *, negative=False):
        return {}

    def decode(self, latents):
        return [Sample(latent=latent.float()) for latent in latents]

    def network(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return Pull().eval()

    def velocity(self, network, latent, sigma, context):
        return network(latent, sigma)


class Murmur(TinyQwen3):
    def __init__(self):
        super().__init__()


class Sketch(Composed):
    def __init__(self):
        super().__init__(writer={"language_model": "tiny_enhancer"}, painter={"denoiser": "tiny_sd3"})


class Wobble(DenoiseVectorEnv):
    def __init__(self, denoiser, *, wobble=1, **others):
        super().__init__(denoiser, **others)
        self.wobble = wobble


def roundness(samples, prompts):
    return Scores(torch.stack([-(sample.latent.norm() - 1).abs() for sample in samples]))


def brevity(samples, prompts):
    return Scores(torch.tensor([-float(len(sample.tokens)) for sample in samples]))
'''


def write(folder: Path, name: str) -> Path:
    """The package `name` in `folder`."""
    place = folder / name
    place.mkdir()
    (place / "__init__.py").write_text(INIT.replace("{name}", name))
    (place / "parts.py").write_text(PARTS)
    return folder
