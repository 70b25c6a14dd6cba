"""Stable Diffusion 3.5 medium in bfloat16, random weights: gaps, rollouts, updates, memory.

`gap` is how far scoring misses sampling under the same weights, per element and in nats of a whole latent:
an update's micro-batches have other sizes than a rollout's batches. With `rows_per_forward` both have one.
"""

from __future__ import annotations

import torch
from measure import (
    arguments,
    iterations,
    measured_peak,
    memory_gib,
    operations,
    quickest,
    report,
    seconds,
    utilization,
)
from sizes import RandomSD3

import unirl_env.functional as F
from unirl_env.agents import FlowDPPOConfig
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.types import Prompt, Scores

PROMPTS, GROUP, STEPS, EXPLORED, MICRO = 4, 16, 10, 3, 8


def brightness(samples, prompts):
    """A reward that no two pictures share, so that every episode is trained on."""
    return Scores(torch.stack([sample.image.mean() for sample in samples]))


def main() -> None:
    args = arguments(__doc__)
    pixels = 512 if args.size == "published" else 64
    options = {"height": pixels, "width": pixels, "dtype": "bfloat16", "device": args.device}
    peak = measured_peak(args.device)
    found = {
        "measured_peak_tflops": peak / 1e12,
        "noise": noise(args.device),
        "gap": {
            str(rows): gap(RandomSD3(args.size, rows_per_forward=rows, **options)) for rows in (None, MICRO)
        },
    }
    report({**found, "iteration": iteration(args.size, options, peak)})


def noise(device: str) -> dict[str, float]:
    """The keyed noise of a step of 64 latents: time, and whether it has the CPU's bits."""
    seeds = list(range(64))
    shape = (16, 64, 64)
    took = seconds(lambda: F.keyed_noise(seeds, 0, shape, device=device), device)
    here, there = (F.keyed_noise(seeds[:4], 0, shape, device=each).cpu() for each in (device, "cpu"))
    return {"ms": 1e3 * took, "largest_difference_from_cpu": float((here - there).abs().max())}


@torch.no_grad()
def gap(denoiser: RandomSD3) -> dict[str, float]:
    """16 latents sampled at once and scored 8 at a time, as log-probs per element and in nats."""
    actor = Actor(denoiser, lora=LoRAConfig(32, 64), storage_dtype="bfloat16")
    actor = actor.to(denoiser.device)
    shape, count = denoiser.latent_shape, 2 * MICRO
    sigmas = denoiser.sigmas(STEPS).to(denoiser.device)
    obs = {
        "latent": F.keyed_noise(list(range(count)), -1, shape, device=denoiser.device).bfloat16(),
        "sigma": sigmas[1].expand(count),
        "sigma_next": sigmas[2].expand(count),
        **denoiser.encode([Prompt(f"prompt {i}") for i in range(count)]),
    }
    step = actor.act(obs, F.keyed_noise(list(range(count)), 1, shape, device=denoiser.device))
    parts = [
        actor.score({k: v[i : i + MICRO] for k, v in obs.items()}, step.latent[i : i + MICRO])
        for i in range(0, count, MICRO)
    ]
    again = torch.cat([part.log_prob for part in parts])
    kl = F.gaussian_kl(torch.cat([part.mean for part in parts]), step.mean, step.std)
    elements = step.latent[0].numel()
    worst = float((again - step.log_prob).abs().max())
    return {
        "log_prob_max": worst,
        "log_prob_max_nats": worst * elements,
        "kl_max_nats": float(kl.max()) * elements,
        "ratio_off_by_max": float((again - step.log_prob).expm1().abs().max()),
    }


def iteration(size: str, options: dict, peak: float) -> dict:
    """Whole iterations of an agent, adapters of rank 32: seconds, utilization, memory."""
    device = options["device"]
    world = {
        "denoiser": "sizes:RandomSD3",
        "model_options": {"size": size},
        "pretrained": None,
        "prompts": [f"prompt {i}" for i in range(PROMPTS)],
        "scorer": "latents:brightness",
        "num_steps": STEPS,
        **options,
    }
    config = (
        FlowDPPOConfig()
        .environment("unirl/SD3-T2I-v0", env_config=world)
        .training(
            num_prompts=PROMPTS,
            group_size=GROUP,
            rollout_batch_size=2 * GROUP,
            micro_batch_size=MICRO,
            steps={"kind": "random", "fraction": (0.0, 0.5), "count": EXPLORED},
            policy={"lora_rank": 32, "lora_alpha": 64, "storage_dtype": "bfloat16"},
            anchor="replay",
            keep_samples=False,
            self_check=False,
        )
    )
    agent = config.build_algo()
    memory_gib(device)
    last = quickest(iterations(agent))
    forward, both = network_flops(RandomSD3(size, **options))
    episodes = PROMPTS * GROUP
    rollout, update = last["seconds/rollout"], last["seconds/update"]
    # The anchor is replayed: one forward more for every row.
    flops = episodes * EXPLORED * (both + forward)
    agent.stop()
    return {
        "episodes": episodes,
        "steps": STEPS,
        "trained_steps": EXPLORED,
        "rollout_seconds": rollout,
        "pictures_per_second": episodes / rollout,
        "rollout": utilization(episodes * STEPS * forward, rollout, device, peak),
        "update_seconds": update,
        "rows_per_second": episodes * EXPLORED / update,
        "update": utilization(flops, update, device, peak),
        "memory_gib": memory_gib(device),
        "gap": last["gap"],
        "gap_max": last["gap_max"],
    }


def network_flops(denoiser: RandomSD3) -> tuple[int, int]:
    """Operations of a row's forward, and of its forward and backward to the adapters."""
    actor = Actor(denoiser, lora=LoRAConfig(32, 64)).to(denoiser.device)
    obs = {
        "latent": torch.randn(1, *denoiser.latent_shape, device=denoiser.device),
        "sigma": torch.full((1,), 0.5, device=denoiser.device),
        **denoiser.encode([Prompt("one")]),
    }
    with torch.no_grad():
        forward = operations(lambda: actor.velocity(obs))
    return forward, operations(lambda: actor.velocity(obs).sum().backward())


if __name__ == "__main__":
    main()
