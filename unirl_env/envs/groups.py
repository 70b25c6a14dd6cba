"""Who answers which prompt, in which group, with which noise: the identity of the episodes of a batch.

All that `reset` may be asked for of it is checked here: unknown words and impossible wishes are refused
before anything changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

import unirl_env.functional as F
from unirl_env.arguments.indices import as_indices, as_mask
from unirl_env.arguments.values import as_whole, whole
from unirl_env.errors import ConfigError
from unirl_env.prompts.sources import as_prompts, sample_offsets
from unirl_env.types import Prompt

ONCE = ("prompts", "sample_offset", "reset_mask")
"""Options that hold for one `reset`; all others hold until the next one."""
LAST_SAMPLE = 2**31
"""Sample ids lie below it; no group has as many episodes."""
AUTORESET = {"next_step": AutoresetMode.NEXT_STEP, "disabled": AutoresetMode.DISABLED}


@dataclass(frozen=True)
class Groups:
    """The identity of B episodes. Immutable, so that snapshots share it.

    Attributes:
        prompts: The B prompts.
        group: `[B]` int64.
        episode_seed: `[B]` int64, key of the noise of every step.
        start_seed: `[B]` int64, key of the initial noise; equal within a group that starts alike.
        forks: How often the batch was forked.
    """

    prompts: tuple[Prompt, ...]
    group: np.ndarray
    episode_seed: np.ndarray
    start_seed: np.ndarray
    forks: int = 0

    def __len__(self) -> int:
        return len(self.prompts)

    @classmethod
    def new(
        cls,
        key: int,
        prompts: Sequence[Prompt],
        group_size: int,
        *,
        sample_offset: Sequence[int] | None = None,
        same_noise: bool = False,
    ) -> Groups:
        """`group_size` episodes for each prompt.

        Args:
            key: The seed that all noise derives from.
            prompts: P prompts; one that occurs again continues its sample ids.
            group_size: G.
            sample_offset: The sample id of each group's first episode, `[P]`.
            same_noise: One initial noise per group.
        """
        if sample_offset is None:
            sample_offset = sample_offsets(prompts, group_size)
        episode, start = [], []
        for prompt, first in zip(prompts, sample_offset, strict=True):
            seeds = [F.episode_seed(key, prompt.id, int(first) + i) for i in range(group_size)]
            episode += seeds
            start += [F.episode_seed(key, prompt.id, -1)] * group_size if same_noise else seeds
        return cls(
            prompts=tuple(prompt for prompt in prompts for _ in range(group_size)),
            group=np.repeat(np.arange(len(prompts), dtype=np.int64), group_size),
            episode_seed=np.asarray(episode, dtype=np.int64),
            start_seed=np.asarray(start, dtype=np.int64),
        )

    @cached_property
    def prompt_array(self) -> np.ndarray:
        """The prompts as an array of objects `[B]`; made once, because every step shows it."""
        prompts = np.empty(len(self.prompts), dtype=object)
        prompts[:] = self.prompts
        return prompts

    @cached_property
    def prompt_texts(self) -> tuple[np.ndarray, np.ndarray]:
        """The prompts' texts and ids as arrays of objects `[B]`; likewise."""
        texts, ids = np.empty((2, len(self.prompts)), dtype=object)
        texts[:] = [prompt.text for prompt in self.prompts]
        ids[:] = [prompt.id for prompt in self.prompts]
        return texts, ids

    @cached_property
    def everyone(self) -> np.ndarray:
        """True `[B]`; likewise."""
        return np.ones(len(self.prompts), dtype=bool)

    def take(self, rows: np.ndarray) -> Groups:
        """The groups in which episode i is this groups's episode `rows[i]`."""
        return replace(
            self,
            prompts=tuple(self.prompts[row] for row in rows),
            group=self.group[rows],
            episode_seed=self.episode_seed[rows],
            start_seed=self.start_seed[rows],
        )

    def fork(self, rows: np.ndarray) -> Groups:
        """Like `take`; each further copy of an episode gets a noise key of its own."""
        copies: Counter[int] = Counter()
        taken = self.take(rows)
        seeds, forks = taken.episode_seed.copy(), self.forks + 1
        for i, row in enumerate(rows.tolist()):
            if copies[row]:
                # The fork's number counts: a copy of an earlier fork may still be there.
                seeds[i] = F.derive_seed(int(seeds[i]), "fork", forks, copies[row])
            copies[row] += 1
        return replace(taken, episode_seed=seeds, forks=forks)

    def put(self, rows: np.ndarray, new: Groups) -> Groups:
        """The groups with `new`'s episodes at `rows`.

        A group is numbered by its place, unless forked episodes elsewhere have that number: then by the
        next one that is free.
        """
        prompts, group = list(self.prompts), self.group.copy()
        episode, start = self.episode_seed.copy(), self.start_seed.copy()
        for prompt, row in zip(new.prompts, rows, strict=True):
            prompts[row] = prompt
        size = len(new) // len(np.unique(new.group))
        taken = set(np.delete(group, rows).tolist())
        for first in range(0, len(rows), size):
            number = int(rows[first]) // size
            while number in taken:
                number += 1
            taken.add(number)
            group[rows[first : first + size]] = number
        episode[rows], start[rows] = new.episode_seed, new.start_seed
        return replace(self, prompts=tuple(prompts), group=group, episode_seed=episode, start_seed=start)


@dataclass(frozen=True)
class ResetState:
    """How the resets of an environment follow each other. Immutable, so that snapshots share it.

    Attributes:
        seed: The seed that the user gave last, or one drawn for a user who gave none.
        resets: How many resets without a seed came since.
        position: How many prompts were taken from the source since.
        options: The reset options that hold on for autoresets, such as `group_size`.
    """

    seed: int
    resets: int = 0
    position: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> int:
        """The key of the noise of the present episodes."""
        return F.derive_seed(self.seed, "reset", self.resets) if self.resets else self.seed

    def next(self) -> ResetState:
        """The state after one more reset without a seed."""
        return replace(self, resets=self.resets + 1)

    def holding(self, options: Mapping[str, Any]) -> ResetState:
        """The state with other options."""
        return replace(self, options=dict(options))

    def past(self, prompts: int) -> ResetState:
        """The state after `prompts` more prompts were taken."""
        return replace(self, position=self.position + prompts)


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
