"""How a learner that fails frees the others, which wait for it in the middle of a forward pass.

A group of processes cannot be told to stop waiting, but those that wait hear at once of a process that ends.
So whoever fails says why to an actor that outlives it, and ends.
"""

from __future__ import annotations

import os
import traceback
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

PATIENCE = 30.0
"""Seconds that the actor may take to answer."""
CUT = ("closed by peer", "reset by peer", "remote process", "broken pipe", "aborted", "timed out")
"""What the errors of those say that were waiting for a process which ended."""


@ray.remote(num_cpus=0)
class _Keeper:
    def __init__(self) -> None:
        self._rung: list[tuple[int, Exception]] = []

    def ring(self, rank: int, error: Exception) -> None:
        self._rung.append((rank, error))

    def rung(self) -> list[tuple[int, Exception]]:
        return self._rung


class Bell:
    """Where learners leave the cause of their end; it can be sent to them."""

    def __init__(self) -> None:
        kind: Any = _Keeper
        # Beside whoever asks it, and not on the learners' node, whose end is to be told of, too.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._keeper = kind.options(scheduling_strategy=here).remote()

    def leave(self, rank: int, error: Exception) -> None:
        """Say why, and end this process."""
        error.add_note("".join(traceback.format_exception(error)))
        try:
            ray.get(self._keeper.ring.remote(rank, error), timeout=PATIENCE)
        finally:
            os._exit(1)

    def cause(self) -> tuple[int, Exception] | None:
        """The learner that failed first and its error; None where none said why, or nobody is left to ask."""
        try:
            rung = ray.get(self._keeper.rung.remote(), timeout=PATIENCE)
        except RayError:
            return None
        return next(((rank, error) for rank, error in rung if not _follows(error)), None)


def _follows(error: Exception) -> bool:
    told = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in told for words in CUT)
