"""What `reset` may be asked for: unknown words and impossible wishes are refused before anything changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from unirl_env.arguments.indices import as_indices, as_mask
from unirl_env.arguments.values import as_whole, whole
from unirl_env.errors import ConfigError
from unirl_env.prompts.sources import as_prompts
from unirl_env.types import Prompt

__all__ = [
    "asked_prompts",
    "checked_autoreset",
    "checked_choice",
    "checked_group_size",
    "checked_offset",
    "checked_options",
    "checked_seed",
    "masked_rows",
    "require_same_size",
]

ONCE = ("prompts", "sample_offset", "reset_mask")
"""Options that hold for one `reset`; all others hold until the next one."""
LAST_SAMPLE = 2**31
"""Sample ids lie below it; no group has as many episodes."""
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
    # By hand, because an array is neither in a tuple nor out of it.
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
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


def asked_prompts(entries: Any, count: int, group_size: int, *, max_characters: int) -> list[Prompt]:
    """The prompts of a `reset`, if there is one for each of `count` groups.

    Raises:
        ConfigError: If there is not.
        PromptError: If one cannot be used.
    """
    prompts = as_prompts(entries, max_characters=max_characters)
    if len(prompts) != count:
        raise ConfigError(
            f"`prompts` must hold one prompt per group, {count}, got {len(prompts)}; "
            f"{count * group_size} episodes start in groups of {group_size}."
        )
    return prompts


def checked_seed(seed: Any) -> int | None:
    """The seed of a `reset` as Python's own number; None stays None.

    Raises:
        ConfigError: If it is no whole number from 0.
    """
    if seed is None:
        return None
    found = as_whole(seed)
    if found is None or found < 0:
        raise ConfigError(
            f"`seed` must be one integer of at least 0, got {seed!r}: it keys every episode's noise."
        )
    return found


def checked_group_size(group_size: int, num_envs: int) -> int:
    """`group_size`, if it divides `num_envs`.

    Raises:
        ConfigError: If it does not.
    """
    group_size = whole("group_size", group_size)
    if num_envs < 1 or group_size < 1 or num_envs % group_size:
        size = max(1, group_size)
        raise ConfigError(
            f"`num_envs` must be a positive multiple of `group_size`, got num_envs={num_envs} and "
            f"group_size={group_size}; try num_envs={size * max(1, num_envs // size)}."
        )
    return group_size


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


def checked_offset(offset: Sequence[int] | None, count: int) -> list[int] | None:
    """The sample id of each group's first episode, if there is one for each of `count` groups.

    Raises:
        ConfigError: If there is not, or one is negative.
    """
    if offset is None:
        return None
    return as_indices("sample_offset", offset, LAST_SAMPLE, count=count, error=ConfigError).tolist()


def masked_rows(mask: Any, num_envs: int, group_size: int) -> np.ndarray:
    """The rows that a `reset_mask` names; all of them where there is none.

    Raises:
        ConfigError: If the mask is not bool `[num_envs]`, names no row, or cuts through a group.
    """
    if mask is None:
        return np.arange(num_envs)
    mask = as_mask("reset_mask", mask, num_envs, error=ConfigError)
    if not mask.any():
        raise ConfigError(f"`reset_mask` must be bool [{num_envs}] with an episode to start, got one with 0.")
    groups = mask.reshape(-1, group_size)
    if (groups.any(axis=1) != groups.all(axis=1)).any():
        raise ConfigError("`reset_mask` must cover whole groups: their episodes share a prompt.")
    return np.flatnonzero(mask)
