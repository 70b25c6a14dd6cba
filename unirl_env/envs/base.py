"""The vector environment that every generative mode shares: groups, prompts, seeds, autoreset, snapshots.

What an action is and when an episode ends is the subclass's affair; see `envs/denoise.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from torch import Tensor

from unirl_env.envs.prompts import PromptSource, as_prompts
from unirl_env.envs.roster import Roster
from unirl_env.errors import ConfigError, ContractError, ShapeError
from unirl_env.types import Sample

__all__ = ["GenerativeVectorEnv", "Snapshot"]

AUTORESET = {"next_step": AutoresetMode.NEXT_STEP, "disabled": AutoresetMode.DISABLED}
BACKENDS = ("numpy", "torch")
RESET_OPTIONS = ("prompts", "group_size", "same_noise", "sample_offset", "reset_mask")


@dataclass(frozen=True)
class Snapshot:
    """The whole state of a vector environment at one moment; restore it as often as you like.

    Tensors are shared with the environment, which never changes a tensor in place.
    """

    roster: Roster
    done: np.ndarray
    model_state: dict[str, Any]


class GenerativeVectorEnv(gym.vector.VectorEnv, ABC):
    """`num_envs` episodes of one generative model, stepped together as tensors.

    The episodes are P groups of `group_size`: the episodes of a group answer the same prompt. Every
    random number is keyed by (seed, prompt id, sample id, step), so that an episode comes out the same
    whatever it is batched with.

    Args:
        num_envs: B, episodes stepped together; a multiple of `group_size`.
        prompts: Anything that `PromptSource.of` understands.
        group_size: G, episodes per prompt.
        same_noise: Start all episodes of a group from one initial noise.
        array_backend: `"numpy"`, or `"torch"` for tensors on `device`.
        device: Where the episodes' tensors live.
        autoreset_mode: `"next_step"` for off-the-shelf agents; `"disabled"` for group rollouts, where
            stepping a finished batch raises.
        render_mode: `"rgb_array"` or None.

    Raises:
        ConfigError: If an argument is out of range, or `group_size` does not divide `num_envs`.
        PromptError: If the prompts cannot be used.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(
        self,
        *,
        num_envs: int,
        prompts: Any,
        group_size: int = 1,
        same_noise: bool = False,
        array_backend: str = "numpy",
        device: str | torch.device = "cpu",
        autoreset_mode: str = "next_step",
        render_mode: str | None = None,
    ):
        if array_backend not in BACKENDS:
            raise ConfigError(f"`array_backend` must be one of {BACKENDS}, got {array_backend!r}.")
        mode = str(getattr(autoreset_mode, "name", autoreset_mode)).lower()
        if mode not in AUTORESET:
            raise ConfigError(f"`autoreset_mode` must be one of {tuple(AUTORESET)}, got {autoreset_mode!r}.")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ConfigError(
                f"`render_mode` must be None or one of {self.metadata['render_modes']}, got {render_mode!r}."
            )
        self.num_envs = num_envs
        self.group_size = _checked_group_size(group_size, num_envs)
        self.same_noise = same_noise
        self.prompts = PromptSource.of(prompts)
        self.array_backend = array_backend
        self.device = torch.device(device)
        self.render_mode = render_mode
        self.metadata = {**type(self).metadata, "autoreset_mode": AUTORESET[mode]}

        self._order_seed, self._position = 0, 0
        self._roster: Roster | None = None
        self._done = np.ones(num_envs, dtype=bool)

    # What a mode fills in.

    @abstractmethod
    def _begin(self, rows: np.ndarray, options: dict[str, Any]) -> None:
        """Start the episodes at `rows` as `_roster` has them."""

    @abstractmethod
    def _advance(self, actions: Any, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Apply the actions of the `active` episodes; return (terminated, truncated), each bool `[B]`."""

    @abstractmethod
    def _observe(self) -> dict[str, Any]:
        """The observation in the chosen backend."""

    @abstractmethod
    def _finish(self, rows: np.ndarray) -> list[Sample]:
        """The samples of the finished episodes at `rows`."""

    @abstractmethod
    def _model_state(self) -> dict[str, Any]:
        """The mode's own state, as immutable values."""

    @abstractmethod
    def _select_model_state(self, state: dict[str, Any], rows: np.ndarray) -> None:
        """Become `state`, with episode i continuing the state's episode `rows[i]`."""

    # The two verbs.

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start new episodes.

        Args:
            seed: Key of all noise of these episodes, and of the order of the prompts from here on.
                Without one, a key is drawn from the environment's own generator.
            options: `prompts` (P prompts or texts, instead of the source's next ones), `group_size`,
                `same_noise`, `sample_offset` (P integers: the sample id of each group's first episode,
                so that workers can share out a group's samples), `reset_mask` (bool `[B]`, whole groups
                only: the others go on), and what the mode adds.

        Returns:
            The observation, and `info` with `group` `[B]`, `prompt` `[B]` and `episode_seed` `[B]`.

        Raises:
            ConfigError: If an option is unknown or does not fit `num_envs`.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        unknown = set(options) - set(RESET_OPTIONS) - set(self._mode_options())
        if unknown:
            known = ", ".join((*RESET_OPTIONS, *self._mode_options()))
            raise ConfigError(f"`options` has unknown keys {sorted(unknown)}; known are {known}.")
        if seed is None:
            key = int(self.np_random.integers(2**62))
        else:
            key, self._order_seed, self._position = int(seed), int(seed), 0
        rows = self._reset_rows(options)
        new = self._new_roster(key, len(rows) // self.group_size, options)
        self._roster = new if len(new) == self.num_envs else self._roster.put(rows, new)
        self._done[rows] = False
        self._begin(rows, options)
        return self._observe(), self._info()

    def step(self, actions: Any) -> tuple[dict[str, Any], Any, Any, Any, dict[str, Any]]:
        """Apply one action to every unfinished episode.

        Returns:
            Observation, reward `[B]` (0 here: wrappers judge finished samples), terminated `[B]`,
            truncated `[B]`, and `info`, which holds `samples` when an episode has just finished.

        Raises:
            ResetNeeded: Before the first reset, and in mode DISABLED once all episodes are finished.
            ShapeError: If the actions do not have the action space's shape.
        """
        if self._roster is None:
            raise ResetNeeded("`step` was called before `reset`; call `env.reset(seed=...)` first.")
        zeros = np.zeros(self.num_envs, dtype=bool)
        if self._done.all():
            if self.metadata["autoreset_mode"] is AutoresetMode.DISABLED:
                raise ResetNeeded(
                    "`step` was called on a finished batch in autoreset mode DISABLED; call `env.reset(...)`."
                )
            observation, info = self.reset()
            return observation, self._zero_reward(), self._flags(zeros), self._flags(zeros), info
        active = ~self._done
        terminated, truncated = self._advance(actions, active)
        finished = active & (terminated | truncated)
        self._done = self._done | finished
        info = self._info()
        if finished.any():
            rows = np.flatnonzero(finished)
            samples: list[Sample | None] = [None] * self.num_envs
            for row, sample in zip(rows, self._finish(rows), strict=True):
                samples[row] = sample
            info["samples"], info["_samples"] = samples, finished
        return self._observe(), self._zero_reward(), self._flags(terminated), self._flags(truncated), info

    # State in and out.

    @property
    def started(self) -> bool:
        """Whether `reset` has been called."""
        return self._roster is not None

    def snapshot(self) -> Snapshot:
        """The whole state, in the middle of an episode too."""
        if self._roster is None:
            raise ResetNeeded("There is no state before the first `reset`; call `env.reset(seed=...)` first.")
        return Snapshot(self._roster, self._done.copy(), self._model_state())

    def restore(self, snapshot: Snapshot) -> tuple[dict[str, Any], dict[str, Any]]:
        """Go back to `snapshot`; returns its observation and info."""
        if len(snapshot.roster) != self.num_envs:
            raise ContractError(
                f"`snapshot` must hold {self.num_envs} episodes, got {len(snapshot.roster)}; "
                "make an environment of the same `num_envs`."
            )
        return self._become(snapshot, np.arange(self.num_envs), snapshot.roster)

    def fork(self, indices: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Let episode i go on from where episode `indices[i]` stands, so that trees can branch.

        The first heir of an episode keeps its noise; each further heir draws fresh, keyed noise.

        Raises:
            ShapeError: Unless `indices` holds `num_envs` valid episode numbers.
        """
        rows = np.asarray(indices, dtype=np.int64)
        if rows.shape != (self.num_envs,) or rows.min() < 0 or rows.max() >= self.num_envs:
            raise ShapeError(
                f"`indices` must be {self.num_envs} numbers in [0, {self.num_envs}), got {list(indices)}."
            )
        snapshot = self.snapshot()
        return self._become(snapshot, rows, snapshot.roster.fork(rows))

    # Shared machinery.

    def _mode_options(self) -> tuple[str, ...]:
        return ()

    def _become(
        self, snapshot: Snapshot, rows: np.ndarray, roster: Roster
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        self._roster, self._done = roster, snapshot.done[rows]
        self._select_model_state(snapshot.model_state, rows)
        return self._observe(), self._info()

    def _reset_rows(self, options: dict[str, Any]) -> np.ndarray:
        if "group_size" in options:
            self.group_size = _checked_group_size(options["group_size"], self.num_envs)
        if options.get("reset_mask") is None:
            return np.arange(self.num_envs)
        mask = np.asarray(options["reset_mask"], dtype=bool)
        if mask.shape != (self.num_envs,):
            raise ConfigError(f"`reset_mask` must be bool [{self.num_envs}], got shape {list(mask.shape)}.")
        if self._roster is None and not mask.all():
            raise ResetNeeded("The first `reset` must start every episode; call it without `reset_mask`.")
        groups = mask.reshape(-1, self.group_size)
        if (groups.any(axis=1) != groups.all(axis=1)).any():
            raise ConfigError("`reset_mask` must cover whole groups: their episodes share a prompt.")
        return np.flatnonzero(mask)

    def _new_roster(self, key: int, count: int, options: dict[str, Any]) -> Roster:
        """The next `count` groups, as the options or the prompt source have them."""
        if options.get("prompts") is None:
            prompts = self.prompts.take(self._position, count, seed=self._order_seed)
            self._position += count
        else:
            prompts = as_prompts(options["prompts"])
            if len(prompts) != count:
                raise ConfigError(
                    f"`prompts` must hold one prompt per group, {count}, got {len(prompts)}; "
                    f"`num_envs` is {self.num_envs} and `group_size` {self.group_size}."
                )
        offset = options.get("sample_offset")
        if offset is not None and len(offset) != count:
            raise ConfigError(f"`sample_offset` must hold one number per group, {count}, got {len(offset)}.")
        same_noise = options.get("same_noise", self.same_noise)
        return Roster.new(key, prompts, self.group_size, sample_offset=offset, same_noise=same_noise)

    def _info(self) -> dict[str, Any]:
        prompts = np.empty(self.num_envs, dtype=object)
        prompts[:] = self._roster.prompts
        return {
            "group": self._roster.group.copy(),
            "prompt": prompts,
            "episode_seed": self._roster.episode_seed.copy(),
        }

    def _zero_reward(self) -> Any:
        if self.array_backend == "torch":
            return torch.zeros(self.num_envs, device=self.device)
        return np.zeros(self.num_envs, dtype=np.float64)

    def _flags(self, flags: np.ndarray) -> Any:
        return torch.from_numpy(flags).to(self.device) if self.array_backend == "torch" else flags

    def _out(self, tensor: Tensor) -> Any:
        """A tensor in the chosen backend; numpy knows no half precision."""
        if self.array_backend == "torch":
            return tensor
        tensor = tensor.detach()
        return (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()


def _checked_group_size(group_size: int, num_envs: int) -> int:
    if num_envs < 1 or group_size < 1 or num_envs % group_size:
        size = max(1, group_size)
        raise ConfigError(
            f"`num_envs` must be a positive multiple of `group_size`, got num_envs={num_envs} and "
            f"group_size={group_size}; try num_envs={size * max(1, num_envs // size)}."
        )
    return int(group_size)
