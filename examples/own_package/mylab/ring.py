"""Points on a ring of Gaussians. A prompt is an angle in degrees; the base model knows nothing of angles."""

import torch
from torch import nn

import unirl_env.functional as F
from unirl_env.models import Denoiser
from unirl_env.types import Sample, Scores

SPOTS, STD = 8, 0.2


def places(prompts):
    """The points `[B, 2]` that prompts ask for."""
    angles = torch.tensor([float(prompt.text) for prompt in prompts]).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1)


def nearness(samples, prompts):
    """The reward: minus the squared distance to the prompt's point."""
    found = torch.stack([sample.latent for sample in samples])
    return Scores(-(found - places(prompts)).square().sum(1))


class RingNetwork(nn.Module):
    """The exact velocity of the ring, whose spots are weighed by what training makes of the prompt."""

    def __init__(self):
        super().__init__()
        self.inner, self.pull = nn.Linear(2, 32), nn.Linear(32, SPOTS)
        nn.init.zeros_(self.pull.weight)
        nn.init.zeros_(self.pull.bias)
        angles = torch.arange(SPOTS) * (2 * torch.pi / SPOTS)
        self.register_buffer("spots", torch.stack([angles.cos(), angles.sin()], 1))

    def forward(self, latent, sigma, place):
        """The mean of noise minus data `[N, 2]`, given latents `[N, 2]` and noise levels `[N]`."""
        s = sigma[:, None, None]
        off = latent[:, None] - (1 - s) * self.spots
        var = s.square() + (1 - s).square() * STD**2
        weight = self.pull(torch.tanh(self.inner(place))) - (off.square() / (2 * var)).sum(2)
        velocity = (s - (1 - s) * STD**2) / var * off - self.spots
        return (weight.softmax(1)[..., None] * velocity).sum(1)


class RingDenoiser(Denoiser):
    """The model: its latents `[2]` are the points."""

    latent_shape = (2,)
    lora_targets = ("inner", "pull")

    def __init__(self, *, device="cpu", dtype="float32", **options):
        self.device = torch.device(device)

    def sigmas(self, num_steps):
        """The noise schedule `[T+1]`."""
        return F.flow_sigmas(num_steps, shift=1.0)

    def encode(self, prompts, *, negative=False):
        """What the network sees of prompts, here their points `[B, 2]`."""
        return {"place": places(prompts).to(self.device)}

    def decode(self, latents):
        """The points themselves."""
        return [Sample(latent=latent.float().cpu().clone()) for latent in latents]

    def network(self):
        """The trained half, the same whenever it is made."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return RingNetwork().to(self.device).eval()

    def velocity(self, network, latent, sigma, context):
        """What the network says."""
        return network(latent.float(), sigma.float(), context["place"])
