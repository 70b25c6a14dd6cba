"""What wrappers share: one base, and which rows of a batch run, begin and end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import AutoresetMode, VectorWrapper

from unirl_env.arguments.indices import as_numpy
from unirl_env.errors import ContractError


class RowChange(NamedTuple):
    """What one step meant for each row, all `[B]` bool.

    Attributes:
        began: A new episode starts here; the reward of this step belongs to none.
        stepped: The row's episode took this step.
        ended: The row's episode ended with this step.
    """

    began: np.ndarray
    stepped: np.ndarray
    ended: np.ndarray


class EpisodeRows:
    """Follows the episodes of a batch through resets, steps and both autoreset modes.

    A new episode is known by its new `info["episode_seed"]`, so that rows that wait for the rest of their
    batch are neither counted nor taken for new ones. Only `reset` and `step` are followed: after a snapshot
    is restored beneath the wrapper, counting is right again from the next reset on.
    """

    def __init__(self, num_envs: int):
        self._seed = np.zeros(num_envs, dtype=np.int64)
        self._running = np.zeros(num_envs, dtype=bool)

    def reset(self, info: Mapping[str, Any], options: Mapping[str, Any] | None) -> np.ndarray:
        """Follow a reset; returns which rows `[B]` begin."""
        mask = (options or {}).get("reset_mask")
        began = np.ones(len(self._running), dtype=bool) if mask is None else as_numpy(mask).astype(bool)
        self._seed = _seeds(info)
        self._running = self._running | began
        return began

    def step(self, info: Mapping[str, Any], terminated: Any, truncated: Any) -> RowChange:
        """Follow a step."""
        seed = _seeds(info)
        began = seed != self._seed
        stepped = self._running & ~began
        ended = stepped & (as_numpy(terminated) | as_numpy(truncated))
        self._seed = seed
        self._running = (self._running | began) & ~ended
        return RowChange(began, stepped, ended)


def _seeds(info: Mapping[str, Any]) -> np.ndarray:
    if "episode_seed" not in info:
        raise ContractError(
            f"`info` must have `episode_seed` at every reset and step, got {sorted(info)}; "
            f"try gymnasium's own wrappers for other environments."
        )
    return as_numpy(info["episode_seed"]).copy()


class Wrapper(VectorWrapper):
    """Gymnasium's own, with the attribute that other libraries look for on a vector environment."""

    @property
    def autoreset_mode(self) -> AutoresetMode:
        """`metadata["autoreset_mode"]`."""
        return self.metadata["autoreset_mode"]
