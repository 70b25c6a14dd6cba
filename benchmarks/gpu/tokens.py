"""A Qwen3 of 1.7 billion random weights in bfloat16, all trained: gaps, rollouts, updates, memory.

Answers come from the network itself with a cache, scoring is packed; `gap` is what lies between the two in
nats of a token's log-probability. Random weights never end a text, so that all have the full length.
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
    utilization,
)
from sizes import RandomQwen3

from unirl_env.agents import DRPOConfig
from unirl_env.types import Scores

PROMPTS, GROUP = 8, 8


def variety(samples, prompts):
    """A reward that hardly two texts share, so that every episode is trained on."""
    return Scores(torch.tensor([len(set(s.tokens)) + 0.01 * (sum(s.tokens) % 89) for s in samples]).float())


def main() -> None:
    args = arguments(__doc__)
    length = 512 if args.size == "published" else 16
    peak = measured_peak(args.device)
    world = {
        "language_model": "sizes:RandomQwen3",
        "model_options": {"size": args.size},
        "pretrained": None,
        "dtype": "bfloat16",
        "device": args.device,
        "prompts": [f"{i} + {i} = ?" for i in range(PROMPTS)],
        "scorer": "tokens:variety",
        "max_new_tokens": length,
        "max_prompt_tokens": 64,
    }
    config = (
        DRPOConfig()
        .environment("unirl/Qwen3-Math-v0", env_config=world)
        .training(
            num_prompts=PROMPTS,
            group_size=GROUP,
            micro_batch_tokens=8192,
            policy={"lora_rank": None},
            lr=1e-6,
            keep_samples=False,
            self_check=False,
        )
    )
    memory_gib(args.device)
    agent = config.build_algo()
    weights = sum(p.numel() for p in agent.env_runner_group.local_env_runner.module.parameters())
    built = memory_gib(args.device)
    rounds = iterations(agent)
    last = quickest(rounds)
    agent.stop()
    tokens = last["tokens"] * PROMPTS * GROUP
    forward, both = network_flops(args.size, args.device, length)
    rollout, update = last["seconds/rollout"], last["seconds/update"]
    most = memory_gib(args.device)
    report(
        {
            "measured_peak_tflops": peak / 1e12,
            "weights": weights,
            "tokens": tokens,
            "rollout_seconds": rollout,
            "rollout_tokens_per_second": tokens / rollout,
            "update_seconds": update,
            "update_tokens_per_second": tokens / update,
            "update": utilization(tokens * both, update, args.device, peak),
            "forward_flops_per_token": forward,
            "memory_built_gib": built,
            "memory_gib": most,
            "bytes_per_weight_at_most": most and most * 2**30 / weights,
            "gap_first": rounds[0]["gap"],
            "gap_max_first": rounds[0]["gap_max"],
            "gap": last["gap"],
            "gap_max": last["gap_max"],
        }
    )


def network_flops(size: str, device: str, length: int) -> tuple[float, float]:
    """Operations per token of a text of `length`: forward, and forward with backward, the head included."""
    model = RandomQwen3(size, dtype="bfloat16", device=device)
    network = model.network()
    tokens = torch.randint(0, 100, (1, length), device=device)
    positions = torch.arange(length, device=device)[None, None]
    lengths = torch.tensor([length])

    def call() -> torch.Tensor:
        return model.hidden(network, tokens, positions, lengths=lengths) @ model.head(network).T

    with torch.no_grad():
        forward = operations(call)
    return forward / length, operations(lambda: call().float().sum().backward()) / length


if __name__ == "__main__":
    main()
