"""What `env.step` itself costs: 64 latents of Stable Diffusion 3 at 512 x 512, torch backend, no network.

Steps a batch of whole episodes with prepared actions, on a model whose encoder and decoder do nothing, with
and without `RewardWrapper`, as the runner plays (`info_objects=True`), and with `plain` infos, which copy
every sample. Every step looks whether its latents are finite, and the last one of an episode decodes and
scores. One JSON line: the milliseconds of a step (mean over whole episodes), of a step in the middle, of the
last one and of `reset`, each the median over episodes, and of one step's keyed noise, which the policy draws.

    python benchmarks/env_step.py [--episodes 64] [--steps 10] [--repeats 10] [--device cpu]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from timing import report
from torch import nn

import unirl_env.functional as F
from unirl_env.envs import DenoiseVectorEnv
from unirl_env.models.denoiser import Denoiser
from unirl_env.types import Sample, Scores
from unirl_env.wrappers import RewardWrapper


class Weightless(Denoiser):
    """The shapes of Stable Diffusion 3.5 medium at 512 x 512, and no weights."""

    latent_shape = (16, 64, 64)
    lora_targets = ()

    def sigmas(self, num_steps):
        """The usual schedule."""
        return F.flow_sigmas(num_steps)

    def encode(self, prompts, *, negative=False):
        """Zeros of the real size."""
        rows = len(prompts)
        embeds = torch.zeros(rows, 333, 4096, dtype=torch.bfloat16)
        return {
            "prompt_embeds": embeds,
            "pooled_prompt_embeds": torch.zeros(rows, 2048, dtype=torch.bfloat16),
        }

    def decode(self, latents):
        """The latents themselves."""
        return [Sample(latent=latent) for latent in latents]

    def network(self):
        """Nothing."""
        return nn.Identity()

    def velocity(self, network, latent, sigma, context):
        """Nothing."""
        return latent


def no_score(samples, prompts):
    return Scores(torch.zeros(len(samples)))


def measure(env, actions, repeats: int) -> dict[str, float]:
    """Milliseconds of a step over whole episodes, in the middle, at the end, and of a reset."""
    spent: dict[str, list[float]] = {"step": [], "middle_step": [], "last_step": [], "reset": []}

    def timed(call, *arguments, **options):
        begin = time.perf_counter()
        call(*arguments, **options)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - begin)

    for seed in range(-1, repeats):
        reset = timed(env.reset, seed=abs(seed))
        steps = [timed(env.step, actions[k % len(actions)]) for k in range(env.unwrapped.num_steps)]
        if seed >= 0:
            spent["reset"].append(reset)
            spent["step"].append(statistics.mean(steps))
            spent["middle_step"].append(statistics.median(steps[:-1]))
            spent["last_step"].append(steps[-1])
    return {name: statistics.median(values) for name, values in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("episodes", 64), ("steps", 10), ("repeats", 10)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    shared = dict(
        num_envs=args.episodes,
        num_steps=args.steps,
        prompts=[f"prompt {i}" for i in range(8)],
        group_size=args.episodes // 8 or 1,
        array_backend="torch",
        autoreset_mode="disabled",
        device=args.device,
    )
    bare = DenoiseVectorEnv(Weightless(), info_objects=True, **shared)
    plain = DenoiseVectorEnv(Weightless(), **shared)
    actions = [torch.randn(args.episodes, *Weightless.latent_shape, device=args.device) for _ in range(2)]
    numbers = {}
    played = {"env": bare, "env+reward": RewardWrapper(bare, no_score), "plain": plain}
    for name, env in played.items():
        for part, milliseconds in measure(env, actions, args.repeats).items():
            numbers[f"{name}/{part}_ms"] = milliseconds
    seeds = bare.reset(seed=0)[1]["episode_seed"]
    noise = []
    for step in range(5):
        begin = time.perf_counter()
        F.keyed_noise(seeds, step, Weightless.latent_shape, device=args.device)
        noise.append(1e3 * (time.perf_counter() - begin))
    report("env_step", {"episodes": args.episodes, **numbers, "keyed_noise_ms": statistics.median(noise)})


if __name__ == "__main__":
    main()
