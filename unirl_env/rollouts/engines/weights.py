"""Where published weights lie for an engine to read."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from unirl_env.policies.actor import Actor

__all__ = ["WeightsFolder"]

MEMORY = Path("/dev/shm")
"""A file system in memory, where Linux has one."""


class WeightsFolder:
    """Directories of weights, one for each publication; only the one in use stays.

    Args:
        place: An existing folder that the engine's processes can read, for instance on a shared file system.
            None takes memory if the weights fit into a half of it (the old ones stay until the new ones are
            loaded), and the system's folder for temporary files otherwise.
    """

    def __init__(self, place: str | None = None):
        self.place = place
        self._made: dict[str, str] = {}
        # Also at the interpreter's end, when nobody closed the engine.
        self._finalizer = weakref.finalize(self, _remove_all, self._made)

    def write(self, label: str, actor: Actor) -> str:
        """Write `actor`'s adapters, or all weights if it trains all, into a new directory.

        Args:
            label: Names the publication.
            actor: The policy.

        Returns:
            The directory.
        """
        size = _bytes(actor.trainable_state() if actor.lora is not None else actor.network)
        directory = tempfile.mkdtemp(prefix=f"unirl-{label}-", dir=self._place(size))
        self._made[directory] = label
        if actor.lora is not None:
            actor.save_adapters(directory)
        else:
            actor.save_weights(directory)
        return directory

    def keep(self, directory: str) -> None:
        """Remove all directories but this one."""
        for other in [made for made in self._made if made != directory]:
            _remove(self._made, other)

    def close(self) -> None:
        """Remove all directories."""
        _remove_all(self._made)

    def _place(self, size: int) -> str | None:
        if self.place is not None:
            return self.place
        fits = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2 * size
        return str(MEMORY) if fits else None


def _bytes(weights: Mapping[str, Any] | nn.Module) -> int:
    tensors = weights.values() if isinstance(weights, Mapping) else weights.parameters()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _remove(made: dict[str, str], directory: str) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    made.pop(directory, None)


def _remove_all(made: dict[str, str]) -> None:
    for directory in list(made):
        _remove(made, directory)
