"""`torch.compile` on the transformer of Stable Diffusion 3.5 medium: a forward's time, and the gap it leaves.

Sampling and scoring with one compiled network must still agree; a compiled sampler beside an eager learner is
what a run must not have, and `gap_to_eager` says by how much these differ.
"""

from __future__ import annotations

import time

import torch
from measure import arguments, finish, report, seconds
from sizes import RandomSD3

import unirl_env.functional as F
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.types import Prompt

ROWS = 16


@torch.no_grad()
def main() -> None:
    args = arguments(__doc__)
    pixels = 512 if args.size == "published" else 64
    denoiser = RandomSD3(args.size, height=pixels, width=pixels, dtype="bfloat16", device=args.device)
    actor = Actor(denoiser, lora=LoRAConfig(32, 64), storage_dtype="bfloat16").to(args.device)
    shape, seeds = denoiser.latent_shape, list(range(ROWS))
    sigmas = denoiser.sigmas(10).to(args.device)
    obs = {
        "latent": F.keyed_noise(seeds, -1, shape, device=args.device).bfloat16(),
        "sigma": sigmas[1].expand(ROWS),
        "sigma_next": sigmas[2].expand(ROWS),
        **denoiser.encode([Prompt(f"prompt {i}") for i in range(ROWS)]),
    }
    noise = F.keyed_noise(seeds, 1, shape, device=args.device)
    eager = seconds(lambda: actor.velocity(obs), args.device)
    step = actor.act(obs, noise)
    finish(args.device)
    began = time.perf_counter()
    actor.network.compile()
    actor.velocity(obs)
    finish(args.device)
    first = time.perf_counter() - began
    compiled = seconds(lambda: actor.velocity(obs), args.device)
    again = actor.act(obs, noise)
    elements = step.latent[0].numel()
    own = (actor.score(obs, again.latent).log_prob - again.log_prob).abs().max()
    other = (actor.score(obs, step.latent).log_prob - step.log_prob).abs().max()
    report(
        {
            "rows": ROWS,
            "eager_ms": 1e3 * eager,
            "compiled_ms": 1e3 * compiled,
            "eager/compiled": eager / compiled,
            "first_call_seconds": first,
            "gap_own_nats": float(own) * elements,
            "gap_to_eager_nats": float(other) * elements,
        }
    )


if __name__ == "__main__":
    main()
