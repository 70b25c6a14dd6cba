"""What scoring tokens costs in memory: `F.score_tokens` against logits that are kept, forward and backward.

Each way runs in a process of its own, which reports the high-water mark of its resident memory above what it
held before. The plain way runs on 1 / `--fraction` of the rows, and what grows with them is multiplied. One
JSON line: gigabytes, seconds of processor time (some five minutes in all), and the largest difference of
gradients at a small size, in millionths of the largest gradient.

    python benchmarks/token_memory.py [--sequences 64] [--tokens 1024] [--vocabulary 150000] [--width 64]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from timing import report
from torch import Tensor

import unirl_env.functional as F


def plain(hidden: Tensor, weight: Tensor, token: Tensor) -> Tensor:
    """The usual few lines: all logits at once, kept for backward."""
    return (hidden @ weight.T).float().log_softmax(-1).gather(-1, token[:, None])[:, 0]


def chunked(hidden: Tensor, weight: Tensor, token: Tensor) -> Tensor:
    """In chunks."""
    return F.score_tokens(hidden, weight, token).log_prob


WAYS = {"plain": plain, "chunked": chunked, "chunked_frozen": chunked}
"""`chunked_frozen` trains only what lies below the output layer, as LoRA does."""


def data(rows: int, args: argparse.Namespace, *, frozen: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, args.width, generator=generator).requires_grad_()
    weight = torch.randn(args.vocabulary, args.width, generator=generator).mul_(args.width**-0.5)
    return (
        hidden,
        weight.requires_grad_(not frozen),
        torch.randint(args.vocabulary, (rows,), generator=generator),
    )


def high_water() -> int:
    """Bytes of resident memory at most so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def measure(way: str, args: argparse.Namespace) -> dict[str, float]:
    """Gigabytes, and seconds of processor time, of one forward and backward pass in this process."""
    frozen = way.endswith("frozen")
    small = argparse.Namespace(vocabulary=100, width=args.width)
    WAYS[way](*data(4, small, frozen=frozen)).sum().backward()  # loads what the first call loads
    rows = args.sequences * args.tokens // (args.fraction if way == "plain" else 1)
    inputs = data(rows, args, frozen=frozen)
    before, begin = high_water(), time.process_time()
    WAYS[way](*inputs).sum().backward()
    return {"gb": (high_water() - before) / 1e9, "cpu_seconds": time.process_time() - begin}


def gradient_error(width: int) -> float:
    """The largest difference of gradients, over the largest gradient, of 96 tokens in several chunks."""
    hidden, weight, token = data(96, argparse.Namespace(vocabulary=5000, width=width))
    grad = torch.randn(96, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad(plain(hidden, weight, token), (hidden, weight), grad)
    scored = F.score_tokens(hidden, weight, token, chunk_bytes=1 << 20).log_prob
    frozen = F.score_tokens(hidden, weight.detach(), token, chunk_bytes=1 << 20).log_prob
    got = torch.autograd.grad(scored, (hidden, weight), grad) + torch.autograd.grad(frozen, hidden, grad)
    pairs = zip(got, (*expected, expected[0]), strict=True)
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("sequences", 64), ("tokens", 1024), ("vocabulary", 150_000), ("width", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument(
        "--fraction", type=int, default=32, help="the plain way runs on this part of the rows"
    )
    parser.add_argument("--way", choices=WAYS, help="measure only this one, in this process")
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, args)))
        return
    numbers: dict[str, float] = {
        name: getattr(args, name) for name in ("sequences", "tokens", "vocabulary", "width")
    }
    for way in WAYS:
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        if way == "plain":
            weight_gradient = 4e-9 * args.vocabulary * args.width  # does not grow with the rows
            found["gb"] = args.fraction * (found["gb"] - weight_gradient) + weight_gradient
            found["cpu_seconds"] *= args.fraction
        numbers |= {f"{way}_{name}": value for name, value in found.items()}
    numbers["plain/chunked_gb"] = numbers["plain_gb"] / numbers["chunked_gb"]
    report("token_memory", {**numbers, "gradient_error_ppm": 1e6 * gradient_error(args.width)})


if __name__ == "__main__":
    main()
