"""A model of two numbers, which an agent learns in seconds.

A prompt is a point, written as `"x,y"`; a sample is the better the nearer it lies. The untrained network
knows nothing of points.
"""

import gymnasium as gym
import torch
from torch import nn

import unirl_env.functional as F
from unirl_env.models.denoiser import Denoiser
from unirl_env.types import Sample, Scores

POINTS = ["1,0", "0,1", "-1,0", "0,-1"]


class PointNetwork(nn.Module):
    """A velocity from the place, the noise level and the wanted point."""

    def __init__(self, width=32):
        super().__init__()
        self.inner = nn.Linear(5, width)
        self.outer = nn.Linear(width, 2)

    def forward(self, latent, sigma, point):
        return self.outer(torch.tanh(self.inner(torch.cat([latent, sigma[:, None], point], dim=1))))


class PointDenoiser(Denoiser):
    """Latents `[2]`, on their way from noise to a point."""

    latent_shape = (2,)
    lora_targets = ("inner", "outer")

    def __init__(self, pretrained=None, *, device="cpu", **options):
        self.pretrained = pretrained
        self.device = torch.device(device)

    def sigmas(self, num_steps):
        return F.flow_sigmas(num_steps, shift=1.0)

    def encode(self, prompts, *, negative=False):
        points = [[float(number) for number in prompt.text.split(",")] for prompt in prompts]
        return {"point": torch.tensor(points, device=self.device)}

    def decode(self, latents):
        return [Sample(latent=latent.float().cpu()) for latent in latents]

    def network(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return PointNetwork().eval()

    def velocity(self, network, latent, sigma, context):
        return network(latent, sigma, context["point"])


class HalfPointDenoiser(PointDenoiser):
    """The same in bfloat16."""

    def network(self):
        return super().network().bfloat16()

    def velocity(self, network, latent, sigma, context):
        return network(latent.bfloat16(), sigma.bfloat16(), context["point"].bfloat16())


def nearness(samples, prompts):
    """Minus the squared distance to the point; the prompt's metadata may call a sample unjudgeable."""
    value = []
    for sample, prompt in zip(samples, prompts, strict=True):
        point = torch.tensor([float(number) for number in prompt.text.split(",")])
        broken = prompt.metadata.get("broken", False)
        value.append(float("nan") if broken else -float((sample.latent - point).square().sum()))
    return Scores(torch.tensor(value))


def farness(samples, prompts):
    """The opposite."""
    return Scores(-nearness(samples, prompts).value)


def make_points(num_envs=1, *, denoiser=None, scorer=nearness, **options):
    """The entry point of the toy environment."""
    from unirl_env.envs.denoising import DenoiseVectorEnv
    from unirl_env.wrappers.reward import RewardWrapper

    denoiser = denoiser if isinstance(denoiser, Denoiser) else PointDenoiser()
    return RewardWrapper(DenoiseVectorEnv(denoiser, num_envs=num_envs, **options), scorer)


for name, family in (("Points", "PointDenoiser"), ("HalfPoints", "HalfPointDenoiser")):
    gym.register(
        f"toy/{name}-v0",
        vector_entry_point=f"{__name__}:make_points",
        kwargs={"denoiser": f"{__name__}:{family}", "num_steps": 6, "prompts": POINTS},
    )


def toy_config(config_class, env="Points", **settings):
    """An agent's configuration on the toy, for tests: 4 points x 8 samples, adapters of rank 8."""
    settings = {
        "num_prompts": 4,
        "group_size": 8,
        "lr": 5e-3,
        "policy": {"lora_rank": 8, "lora_alpha": 16},
        "steps": {"kind": "all"},
        **settings,
    }
    return config_class().environment(f"toy:toy/{env}-v0").training(**settings)
