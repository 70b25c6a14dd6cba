"""What the parts share: the device's peak, floating-point operations, seconds, memory."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

NOMINAL = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12, "A10G": 70e12}
"""Dense bf16 operations per second by the makers' sheets; others are held against the measured peak only."""


def arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=("published", "tiny"), default="published")
    return parser.parse_args()


def finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(call: Callable[[], object], device: str, *, repeats: int = 5, warmup: int = 2) -> float:
    """The median of `repeats` calls."""
    times = []
    for turn in range(-warmup, repeats):
        finish(device)
        began = time.perf_counter()
        call()
        finish(device)
        if turn >= 0:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def operations(call: Callable[[], object]) -> int:
    """Floating-point operations of one call: matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def measured_peak(device: str) -> float:
    """Operations per second of a large bf16 matrix product."""
    size = 8192 if device == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, device)


def utilization(flops: float, took: float, device: str, peak: float) -> dict[str, float | None]:
    """Model FLOPs utilization against the maker's figure and against the measured product."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    nominal = next((value for key, value in NOMINAL.items() if key in name), None)
    return {
        "tflops": flops / took / 1e12,
        "mfu": nominal and flops / took / nominal,
        "of_measured_peak": flops / took / peak,
    }


def memory_gib(device: str) -> float | None:
    """The most that tensors took since the last call."""
    if device != "cuda":
        return None
    most = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return most


def iterations(agent: Any, count: int = 3) -> list[dict[str, Any]]:
    """The metrics of `count` iterations; the first one compiles, allocates and reads on the way."""
    rounds = []
    for _ in range(count):
        agent.train()
        rounds.append(dict(agent.iteration_metrics))
    return rounds


def quickest(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The iteration with the quickest update, the first one aside."""
    return min(rounds[1:], key=lambda each: each["seconds/update"])


def report(numbers: Mapping[str, Any]) -> None:
    """One line of JSON, the last that a part prints."""
    print(json.dumps(_rounded(numbers)))


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value
