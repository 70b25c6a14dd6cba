"""What `reset` may be asked for: unknown words and impossible wishes are refused before anything changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from unirl_env.errors import ConfigError, ShapeError

__all__ = [
    "checked_autoreset",
    "checked_choice",
    "checked_group_size",
    "checked_heirs",
    "checked_offset",
    "checked_options",
    "masked_rows",
    "require_as_many",
    "require_same_size",
    "restarting_rows",
]

ONCE = ("prompts", "sample_offset", "reset_mask")
"""Options that hold for one `reset`; all others hold until the next one."""
AUTORESET = {"next_step": AutoresetMode.NEXT_STEP, "disabled": AutoresetMode.DISABLED}


def checked_autoreset(mode: str | AutoresetMode) -> AutoresetMode:
    """The mode that a name or a mode stands for.

    Raises:
        ConfigError: If it is not one of NEXT_STEP and DISABLED.
    """
    return AUTORESET[checked_choice("autoreset_mode", str(getattr(mode, "name", mode)).lower(), [*AUTORESET])]


def checked_choice(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """`value`, if it is one of `choices`.

    Raises:
        ConfigError: If it is not.
    """
    if value not in choices:
        raise ConfigError(f"`{name}` must be one of {tuple(choices)}, got {value!r}.")
    return value


def checked_options(options: Mapping[str, Any] | None, held: Iterable[str]) -> dict[str, Any]:
    """The options that are given, None counting as not given.

    Args:
        options: What the user wrote.
        held: The names that an environment knows beside `ONCE`.

    Raises:
        ConfigError: If a name is unknown.
    """
    known = (*held, *ONCE)
    unknown = sorted(set(options or {}) - set(known))
    if unknown:
        raise ConfigError(f"`options` has unknown keys {unknown}; known are {', '.join(known)}.")
    return {name: value for name, value in (options or {}).items() if value is not None}


def checked_group_size(group_size: int, num_envs: int) -> int:
    """`group_size`, if it divides `num_envs`.

    Raises:
        ConfigError: If it does not.
    """
    if num_envs < 1 or group_size < 1 or num_envs % group_size:
        size = max(1, group_size)
        raise ConfigError(
            f"`num_envs` must be a positive multiple of `group_size`, got num_envs={num_envs} and "
            f"group_size={group_size}; try num_envs={size * max(1, num_envs // size)}."
        )
    return int(group_size)


def require_as_many(given: int, groups: int, num_envs: int, group_size: int) -> None:
    """Refuse another number of prompts than there are groups.

    Raises:
        ConfigError: If `given` is not `groups`.
    """
    if given != groups:
        raise ConfigError(
            f"`prompts` must hold one prompt per group, {groups}, got {given}; `num_envs` is {num_envs} and "
            f"`group_size` {group_size}."
        )


def require_same_size(group_size: int, present: int) -> None:
    """Refuse another group size in a reset of some of the groups.

    Raises:
        ConfigError: If `group_size` is not the present one.
    """
    if group_size != present:
        raise ConfigError(
            f"`group_size` must stay {present} while other groups go on, got {group_size}; "
            "reset every episode to change it."
        )


def checked_heirs(indices: Sequence[int], num_envs: int) -> np.ndarray:
    """The episodes that `fork` continues, if there is one for each of `num_envs`.

    Raises:
        ShapeError: If there is not, or one does not exist.
    """
    rows = np.asarray(indices)
    fits = rows.shape == (num_envs,) and rows.dtype.kind in "iu"
    if not fits or rows.min() < 0 or rows.max() >= num_envs:
        raise ShapeError(f"`indices` must be {num_envs} integers in [0, {num_envs}), got {list(indices)}.")
    return rows


def checked_offset(offset: Sequence[int] | None, count: int) -> list[int] | None:
    """The sample id of each group's first episode, if there is one for each of `count` groups.

    Raises:
        ConfigError: If there is not, or one is negative.
    """
    if offset is None:
        return None
    offsets = [int(first) for first in offset]
    if len(offsets) != count or min(offsets) < 0:
        raise ConfigError(
            f"`sample_offset` must hold one number from 0 per group, {count} of them, got {offsets}."
        )
    return offsets


def masked_rows(mask: Any, num_envs: int, group_size: int) -> np.ndarray:
    """The rows that a `reset_mask` names; all of them where there is none.

    Raises:
        ConfigError: If the mask is not bool `[num_envs]`, names no row, or cuts through a group.
    """
    if mask is None:
        return np.arange(num_envs)
    mask = np.asarray(mask.cpu() if hasattr(mask, "cpu") else mask)
    if mask.shape != (num_envs,) or mask.dtype != bool or not mask.any():
        raise ConfigError(
            f"`reset_mask` must be bool [{num_envs}] with an episode to start, got {mask.dtype} "
            f"{list(mask.shape)} with {int(mask.astype(bool).sum())}."
        )
    groups = mask.reshape(-1, group_size)
    if (groups.any(axis=1) != groups.all(axis=1)).any():
        raise ConfigError("`reset_mask` must cover whole groups: their episodes share a prompt.")
    return np.flatnonzero(mask)


def restarting_rows(mode: AutoresetMode, done: np.ndarray, group_size: int) -> np.ndarray | None:
    """The episodes `[B]` bool that the next step starts anew, whole groups of those that are `done`; or None.

    Raises:
        ResetNeeded: If all are done and nothing starts by itself.
    """
    if mode is AutoresetMode.NEXT_STEP:
        whole = done.reshape(-1, group_size).all(axis=1)
        return np.repeat(whole, group_size) if whole.any() else None
    if done.all():
        raise ResetNeeded("`step` was called on a finished batch in mode DISABLED; call `env.reset(...)`.")
    return None
