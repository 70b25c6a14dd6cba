"""All weights of a small Qwen3 trained in bfloat16 and in float32 on the same rows, 200 steps of 1e-6.

`distance` is how far the weights that score have moved in bfloat16, as a share of float32's: 1 where float32
masters do their work, far below where rounding takes small steps back.
"""

from __future__ import annotations

import time

import torch
from measure import arguments, finish, memory_gib, report
from sizes import SEED, RandomQwen3

from unirl_env.agents.optimizer import Masters
from unirl_env.policies.actor import Actor

STEPS, LR, TEXTS = 200, 1e-6, 16
SMALL = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8}


def main() -> None:
    args = arguments(__doc__)
    found = {dtype: train(dtype, args.size, args.device) for dtype in ("float32", "bfloat16")}
    moved = {dtype: each.pop("moved") for dtype, each in found.items()}
    report({**found, "distance": float(moved["bfloat16"].norm() / moved["float32"].norm())})


def train(dtype: str, size: str, device: str) -> dict:
    """How the network's weights have moved, the share of them that did, seconds and memory of a step."""
    model = RandomQwen3(size, dtype=dtype, device=device)
    if size == "published":
        model.sizes = {**model.sizes, **SMALL, "num_key_value_heads": 4}
    actor = Actor(model)
    length = 128 if size == "published" else 16
    generator = torch.Generator().manual_seed(SEED)
    tokens = torch.randint(0, 250, (TEXTS * length,), generator=generator).to(device)
    obs = {
        "tokens": tokens,
        "positions": torch.arange(length, device=device).repeat(TEXTS)[None],
        "lengths": torch.full((TEXTS,), length),
        "source": torch.cat([torch.arange(length - 1) + i * length for i in range(TEXTS)]).to(device),
    }
    action = tokens.view(TEXTS, length)[:, 1:].flatten()
    advantages = torch.randn(TEXTS, generator=generator).repeat_interleave(length - 1).to(device)
    named = {name: weight for name, weight in actor.named_parameters() if weight.requires_grad}
    before = {name: weight.detach().float().cpu().clone() for name, weight in named.items()}
    masters = Masters(named)
    optimizer = torch.optim.AdamW(masters.weights, lr=LR, weight_decay=0.0)
    memory_gib(device)
    finish(device)
    began = time.perf_counter()
    for _ in range(STEPS):
        for weight in masters.weights:
            weight.grad = torch.zeros_like(weight)
        (-advantages * actor.score(obs, action).log_prob).mean().backward()
        optimizer.step()
        masters.cast()
    finish(device)
    took = time.perf_counter() - began
    moved = torch.cat([(w.detach().float().cpu() - before[name]).flatten() for name, w in named.items()])
    return {
        "moved": moved,
        "weights": moved.numel(),
        "share_moved": float((moved != 0).float().mean()),
        "ms_per_step": 1e3 * took / STEPS,
        "memory_gib": memory_gib(device),
    }


if __name__ == "__main__":
    main()
