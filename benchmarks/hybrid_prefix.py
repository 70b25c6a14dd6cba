"""What it saves to read the text of a hybrid episode once: a denoising step behind cached keys and values.

A unified decoder of width 256 and 6 layers with random weights denoises 16 x 16 latents behind texts of 256
tokens. A step that reads the text again is compared with one that finds it read, and so are whole episodes,
of which the cached one reads the text once. One JSON line: milliseconds, medians over rounds in which the
candidates take turns, and their ratios.

    python benchmarks/hybrid_prefix.py [--episodes 8] [--text 256] [--steps 10] [--repeats 5] [--device cpu]
"""

from __future__ import annotations

import argparse

import torch
from timing import interleaved, report

from pretraining.unified_build import tiny_tokenizer, tiny_unified
from unirl_env.models.unified_flow.network import ATTENTION


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--text", type=int, default=256, help="tokens in front of the picture")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--side", type=int, default=16, help="of the latent")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    network = tiny_unified(
        tiny_tokenizer(),
        hidden_size=args.width,
        intermediate_size=3 * args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=args.width // 32,
        num_key_value_heads=max(1, args.width // 64),
        max_position_embeddings=2 * (args.text + args.side**2),
        latent_size=args.side,
        max_grid=args.side // 2,
        attn_implementation=ATTENTION,
    ).to(args.device)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():  # what begins at zero would make all velocities zero
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator).to(parameter)
    tokens = torch.randint(256, (args.episodes, args.text), generator=generator).to(args.device)
    length = torch.full((args.episodes,), args.text, device=args.device)
    latent = torch.randn(args.episodes, 4, args.side, args.side, generator=generator).to(args.device)
    sigma = torch.full((args.episodes,), 0.5, device=args.device)

    with torch.no_grad():
        prefix = network.read_text(tokens, length)[1]

        def cached() -> torch.Tensor:
            return network.velocity(latent, sigma, prefix)

        def again() -> torch.Tensor:
            return network.velocity(latent, sigma, network.read_text(tokens, length)[1])

        def episode_cached() -> None:
            known = network.read_text(tokens, length)[1]
            for _ in range(args.steps):
                network.velocity(latent, sigma, known)

        def episode_again() -> None:
            for _ in range(args.steps):
                again()

        steps = interleaved({"cached": cached, "again": again}, 3 * args.repeats)
        episodes = interleaved({"cached": episode_cached, "again": episode_again}, args.repeats)
    report(
        "hybrid_prefix",
        {
            "episodes": args.episodes,
            "text": args.text,
            "patches": (args.side // 2) ** 2,
            "step/cached_ms": 1e3 * steps["cached"],
            "step/again_ms": 1e3 * steps["again"],
            "step/times_as_fast": steps["again"] / steps["cached"],
            "episode/cached_ms": 1e3 * episodes["cached"],
            "episode/again_ms": 1e3 * episodes["again"],
            "episode/times_as_fast": episodes["again"] / episodes["cached"],
        },
    )


if __name__ == "__main__":
    main()
