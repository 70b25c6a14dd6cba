"""Times of things that take turns, so that a machine whose speed drifts slows all of them alike."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

__all__ = ["RowsSeen", "interleaved", "ratio", "report", "rounds"]


def rounds(
    candidates: Mapping[str, Callable[[], object]], repeats: int, *, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each candidate in each of `repeats` rounds, in which each runs once."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(-warmup, repeats):
        for name, call in candidates.items():
            begin = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= 0:
                times[name].append(time.perf_counter() - begin)
    return times


def interleaved(
    candidates: Mapping[str, Callable[[], object]], repeats: int, *, warmup: int = 1
) -> dict[str, float]:
    """Median seconds of each candidate over `repeats` rounds in which each runs once."""
    times = rounds(candidates, repeats, warmup=warmup)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def ratio(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """`over / under` round by round: the smallest, the median and the largest."""
    found = sorted(a / b for a, b in zip(over, under, strict=True))
    return {"min": found[0], "median": statistics.median(found), "max": found[-1]}


class RowsSeen:
    """Counts the rows that a network is given."""

    def __init__(self):
        self.rows = 0

    def watch(self, network: torch.nn.Module) -> None:
        """Count those of `network`, too."""
        network.register_forward_pre_hook(self._count, with_kwargs=True)

    def of(self, call: Callable[[], object]) -> int:
        """How many rows one `call` is."""
        self.rows = 0
        call()
        return self.rows

    def _count(self, module, args, kwargs) -> None:
        self.rows += len(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])


def report(name: str, numbers: Mapping[str, object]) -> None:
    """One JSON line: what was measured, where, and the numbers."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    print(
        json.dumps(
            {"benchmark": name, "device": device, "threads": torch.get_num_threads()}
            | _rounded(dict(numbers))
        ),
        flush=True,
    )


def _rounded(value):
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return round(value, 4) if isinstance(value, float) else value
