"""What may be asked of numbers that are given to a statistic, checked in its first lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unirl_env.errors import ConfigError, ShapeError

Array = np.ndarray[Any, np.dtype[Any]]


def numbers(values: Sequence[float] | Sequence[Sequence[float]] | Array, name: str, rank: int = 1) -> Array:
    """`values` as floats, at least one, all finite.

    Raises:
        ShapeError: If they have another rank, or there are none.
        ConfigError: If one of them is no finite number.
    """
    found = np.asarray(values, dtype=float)
    if found.ndim != rank or not found.size:
        raise ShapeError(
            f"`{name}` must be {'a list of numbers' if rank == 1 else 'a table of numbers'}, at least one, "
            f"got shape {list(found.shape)}; try leaving out what has no numbers."
        )
    wrong = np.flatnonzero(~np.isfinite(found))
    if wrong.size:
        raise ConfigError(
            f"`{name}` must be finite numbers, got {found.flat[wrong[0]]} at place {wrong[0]}; try counting "
            "what failed as 0, or leaving it out of both sides."
        )
    return found


def by_task(scores: Mapping[str, Sequence[float] | Array], name: str) -> dict[str, Array]:
    """Task to the numbers of its seeds, at least one task, each with at least one finite number.

    Raises:
        ShapeError: If there is no task, or one of them has no seeds.
        ConfigError: If a score is no finite number.
    """
    if not scores:
        raise ShapeError(f"`{name}` must have at least one task, got none; try a suite that has been run.")
    return {task: numbers(seeds, f"{name}[{task!r}]") for task, seeds in scores.items()}


def same_tasks(first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]) -> None:
    """Refuse to compare where only one of two has been measured.

    Raises:
        ConfigError: If a task is missing on one side.
    """
    if first.keys() != second.keys():
        alone = sorted(first.keys() ^ second.keys())
        raise ConfigError(
            f"`{names[0]}` and `{names[1]}` must have the same tasks, got {', '.join(alone)} in one of them "
            "only; try the tasks that both have."
        )


def proper_level(level: float) -> float:
    """A level between 0 and 1.

    Raises:
        ConfigError: If it is not.
    """
    if not 0.0 < level < 1.0:
        raise ConfigError(f"`level` must lie between 0 and 1, got {level}; try 0.95.")
    return level
