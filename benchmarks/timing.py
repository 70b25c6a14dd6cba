"""Times of things that take turns, so that a machine whose speed drifts slows all of them alike."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch


def interleaved(
    candidates: Mapping[str, Callable[[], object]], repeats: int, *, warmup: int = 1
) -> dict[str, float]:
    """Median seconds of each candidate over `repeats` rounds in which each runs once."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(-warmup, repeats):
        for name, call in candidates.items():
            begin = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= 0:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def report(name: str, numbers: Mapping[str, float]) -> None:
    """One JSON line: what was measured, where, and the numbers."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in numbers.items()}
    print(json.dumps({"benchmark": name, "device": device, "threads": torch.get_num_threads(), **rounded}))
