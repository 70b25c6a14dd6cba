"""The vector environment that every generative mode shares: groups, prompts, seeds, autoreset, snapshots.

What an action is and when an episode ends says the `Activity` that it holds; see `envs/denoising.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from unirl_env.arguments.indices import as_indices
from unirl_env.arguments.values import truth, whole
from unirl_env.envs.activity import Activity
from unirl_env.envs.groups import (
    Groups,
    ResetState,
    asked_prompts,
    checked_autoreset,
    checked_choice,
    checked_group_size,
    checked_offset,
    checked_options,
    checked_seed,
    masked_rows,
    require_same_size,
)
from unirl_env.envs.info import of_samples
from unirl_env.envs.snapshot import BySnapshot, Snapshot, facts_of, require_like
from unirl_env.prompts.sources import MAX_CHARACTERS, PromptSource
from unirl_env.types import Prompt, Sample


class GenerativeVectorEnv(BySnapshot, gym.vector.VectorEnv[dict[str, Any], Any, Any]):
    """`num_envs` episodes of one generative model, stepped together as tensors.

    The episodes are P groups of `group_size`: the episodes of a group answer the same prompt. Every
    random number is keyed by (seed, prompt id, sample id, step), so that an episode comes out the same
    whatever it is batched with.

    It answers `envs.contract.GenerativeEnv`. Pickles and copies go on as it does, at any time: `BySnapshot`.

    With the numpy backend, observations and actions belong to the caller. With the torch backend they are
    the environment's own tensors, as copies would cost more than a step: do not write into them.

    Args:
        num_envs: B, episodes stepped together; a multiple of `group_size`.
        prompts: Anything that `PromptSource.of` understands.
        group_size: G, episodes per prompt.
        same_noise: Start all episodes of a group from one initial noise.
        array_backend: `"numpy"`, or `"torch"` for tensors on `device`.
        device: Where the episodes' tensors live.
        autoreset_mode: `"next_step"` for off-the-shelf agents: a finished group starts anew at the step
            after its end; `"disabled"` for group rollouts, where stepping a finished batch raises. In both,
            an episode that has ended waits for the rest: its actions mean nothing, its observation and its
            flags stay, its reward is 0. Agents that take a repeated flag for another end need groups of 1.
        render_mode: One of `metadata["render_modes"]`, or None.
        max_characters: The longest prompt that is accepted, from the source or from `reset`.
        info_objects: Give `info` as the library's own objects (`Prompt`, `Sample`, `Scores`) rather than as
            plain data.

    Attributes:
        finished: The samples of the episodes that the last step has finished, by their rows.

    Raises:
        ConfigError: If an argument is out of range, or `group_size` does not divide `num_envs`.
        PromptError: If the prompts cannot be used.
    """

    _activity: Activity

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 4}
    laws: Sequence[Any] = ()

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
        max_characters: int = MAX_CHARACTERS,
        info_objects: bool = False,
    ):
        self.autoreset_mode = checked_autoreset(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.array_backend = checked_choice("array_backend", array_backend, ("numpy", "torch"))
        self.render_mode = checked_choice("render_mode", render_mode, (None, *self.metadata["render_modes"]))
        self.num_envs = num_envs = whole("num_envs", num_envs)
        self.max_characters = whole("max_characters", max_characters, 1)
        self.info_objects = truth("info_objects", info_objects)
        self.prompts = PromptSource.of(prompts, max_characters=max_characters)
        self.device = torch.device(device)
        self._defaults: dict[str, Any] = {
            "group_size": checked_group_size(group_size, num_envs),
            "same_noise": truth("same_noise", same_noise),
        }
        """Options of `reset` that autoresets keep, as the constructor has them."""
        self.finished: dict[int, Sample] = {}
        self._reset_state: ResetState | None = None
        self._groups: Groups | None = None
        self._done = np.ones(num_envs, dtype=bool)

    @property
    def _shared(self) -> dict[str, Any]:
        """What every activity is told: how many episodes there are, and where and as what they are seen."""
        return {"num_envs": self.num_envs, "device": self.device, "array_backend": self.array_backend}

    def _play(self, activity: Activity) -> None:
        """Take the activity and its spaces; a mode makes it in its constructor."""
        self._activity = activity
        self.single_action_space = activity.action_space
        self.single_observation_space = spaces.Dict(dict(activity.observation_spaces))
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    # The two verbs.

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start new episodes.

        Args:
            seed: Key of all noise of these episodes, and of the order of the prompts from here on.
                Without one, the key after that of the last reset.
            options: `prompts` (P prompts or texts, instead of the source's next ones), `group_size`,
                `same_noise`, `sample_offset` (P integers: the sample id of each group's first episode,
                so that workers can share out a group's samples), `reset_mask` (bool `[B]`, whole groups
                only: the others go on), and what the mode adds. They hold until the next call, for
                autoresets too, except that these go on with the source's prompts.

        Returns:
            The observation, and `info` with `group` `[B]`, `prompt` `[B]` (the texts), `prompt_id` `[B]` and
            `episode_seed` `[B]`, each with the mask of Gymnasium's vector infos.

        Raises:
            ConfigError: If an option is unknown or does not fit `num_envs`.
        """
        options = checked_options(options, self._defaults)
        seed = checked_seed(seed)
        super().reset(seed=seed)
        rows = masked_rows(options.get("reset_mask"), self.num_envs, self.group_size)
        partial = len(rows) < self.num_envs
        last = self._reset_state
        if partial and last is None:
            raise ResetNeeded("The first `reset` must start every episode; call it without `reset_mask`.")
        held = dict(last.options if last is not None and partial else self._defaults)
        held = self._checked_held(held | {name: options[name] for name in held if name in options})
        if partial:
            require_same_size(held["group_size"], self.group_size)
        if seed is not None:
            reset_state = ResetState(seed)
        elif last is not None:
            reset_state = last.next()
        else:
            reset_state = ResetState(int(self.np_random.integers(2**62)))
        self._start(rows, reset_state.holding(held), options)
        self.finished = {}
        return self._observe(), self._info()

    def step(self, actions: Any) -> tuple[dict[str, Any], Any, Any, Any, dict[str, Any]]:
        """Apply one action to every unfinished episode.

        Returns:
            Observation, reward `[B]` (0 here: wrappers judge finished samples), terminated `[B]`,
            truncated `[B]`, and `info`, which holds `sample` when an episode has just finished: a mapping of
            what there is of `image`, `text`, `tokens` and so on, each `[B, ...]` with its mask.

        Raises:
            ResetNeeded: Before the first reset, and in mode DISABLED once all episodes are finished.
            ShapeError: If the actions do not have the action space's shape.
        """
        if self._groups is None or self._reset_state is None:
            raise ResetNeeded("`step` was called before `reset`; call `env.reset(seed=...)` first.")
        active, self.finished = ~self._done, {}
        alive = int(np.count_nonzero(active))
        restarting = self._restarting(alive)
        if alive:
            terminated, truncated = self._advance(actions, active)
            finished = active & (terminated | truncated)
            if np.count_nonzero(finished):
                self._done = self._done | finished
                rows = np.flatnonzero(finished)
                self.finished = dict(zip(rows.tolist(), self._finish(rows), strict=True))
        else:
            terminated, truncated = np.zeros((2, self.num_envs), dtype=bool)
        if restarting is not None:
            self._start(np.flatnonzero(restarting), self._reset_state.next(), {})
            terminated, truncated = terminated & ~restarting, truncated & ~restarting
        results = (np.zeros(self.num_envs, dtype=np.float32), terminated, truncated)
        return self._observe(), *map(self._array, results), self._info()

    # State in and out.

    @property
    def started(self) -> bool:
        """Whether `reset` has been called."""
        return self._groups is not None

    @property
    def playing(self) -> tuple[Prompt, ...]:
        """The B prompts of the present episodes."""
        return self._groups.prompts if self._groups is not None else ()

    @property
    def group_size(self) -> int:
        """G of the present episodes."""
        return self._held("group_size")

    def snapshot(self) -> Snapshot:
        """The whole state, in the middle of an episode too."""
        if self._groups is None or self._reset_state is None:
            raise ResetNeeded("There is no state before the first `reset`; call `env.reset(seed=...)` first.")
        return Snapshot(
            self._groups, self._reset_state, self._done.copy(), self._activity.state(), facts_of(self)
        )

    def restore(self, snapshot: Snapshot) -> tuple[dict[str, Any], dict[str, Any]]:
        """Go back to `snapshot` of an environment like this one; returns its observation and info."""
        require_like(snapshot, self)
        return self._become(snapshot, np.arange(self.num_envs), snapshot.groups)

    def fork(self, indices: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Let episode i go on from where episode `indices[i]` stands, so that trees can branch.

        The first copy of an episode keeps its noise; each further copy draws fresh, keyed noise.

        Raises:
            ShapeError: Unless `indices` holds `num_envs` valid episode numbers.
        """
        snapshot, count = self.snapshot(), self.num_envs
        rows = as_indices("indices", indices, count, count=count)
        return self._become(snapshot, rows, snapshot.groups.fork(rows))

    # Shared machinery.

    def _begin(self, rows: np.ndarray, groups: Groups, options: Mapping[str, Any]) -> None:
        """Start the episodes at `rows` as `groups` has them; changes nothing if it raises."""
        self._activity.begin(rows, self._activity.prepared(rows, groups, options))

    def _advance(self, actions: Any, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Apply the actions of the `active` episodes; return (terminated, truncated), each bool `[B]`."""
        assert self._groups is not None
        self._activity.advance(self._activity.checked(actions, active, self._groups))
        return self._activity.ended()

    def _observe(self) -> dict[str, Any]:
        return self._activity.observe()

    def _finish(self, rows: np.ndarray) -> list[Sample]:
        return self._activity.finish(rows)

    def _facts(self) -> dict[str, Any]:
        """What an environment must have in common with this one to go on from its snapshots."""
        seen = self._activity.observation_spaces.items()
        return {
            "actions": str(self._activity.action_space),
            **{f"observation `{name}`": f"{space.dtype} {list(space.shape or ())}" for name, space in seen},
            **self._activity.facts(),
        }

    def _restarting(self, alive: int) -> np.ndarray | None:
        """The episodes `[B]` bool that the next step starts anew: groups in which all are done; or None.

        Args:
            alive: How many are not done.

        Raises:
            ResetNeeded: If all are done and nothing starts by itself.
        """
        if self.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP:
            done = self._done.reshape(-1, self.group_size).all(axis=1)
            return np.repeat(done, self.group_size) if done.any() else None
        if not alive:
            raise ResetNeeded(
                "`step` was called on a finished batch in mode DISABLED; call `env.reset(...)`."
            )
        return None

    def _checked_held(self, held: Mapping[str, Any]) -> dict[str, Any]:
        """The options that autoresets keep; a mode checks its own, too."""
        size = checked_group_size(held["group_size"], self.num_envs)
        return {**held, "group_size": size, "same_noise": truth("same_noise", held["same_noise"])}

    def _start(self, rows: np.ndarray, reset_state: ResetState, options: Mapping[str, Any]) -> None:
        """Start the groups at `rows`, with the prompts of the options or the source's next ones."""
        size = reset_state.options["group_size"]
        count = len(rows) // size
        if options.get("prompts") is None:
            prompts = self.prompts.take(reset_state.position, count, seed=reset_state.seed)
            reset_state = reset_state.past(count)
        else:
            prompts = asked_prompts(options["prompts"], count, size, max_characters=self.max_characters)
        groups = Groups.new(
            reset_state.key,
            prompts,
            size,
            sample_offset=checked_offset(options.get("sample_offset"), count),
            same_noise=reset_state.options["same_noise"],
        )
        if self._groups is not None and len(rows) < self.num_envs:
            groups = self._groups.put(rows, groups)
        self._begin(rows, groups, reset_state.options)
        self._groups, self._reset_state = groups, reset_state
        self._done[rows] = False

    def _held(self, name: str) -> Any:
        return (self._reset_state.options if self._reset_state else self._defaults)[name]

    def _become(
        self, snapshot: Snapshot, rows: np.ndarray, groups: Groups
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        self._activity.select(snapshot.model_state, rows)
        self._groups, self._reset_state, self._done = groups, snapshot.reset_state, snapshot.done[rows]
        self.finished = {}
        return self._observe(), self._info()

    def _info(self) -> dict[str, Any]:
        """Who plays, each `[B]` with its mask unless it is objects, and what has just been finished."""
        groups = self._groups
        assert groups is not None
        if self.info_objects:
            prompt = {"prompt": groups.prompt_array.copy()}
            who = {"group": groups.group.copy(), **prompt, "episode_seed": groups.episode_seed.copy()}
        else:
            everyone = groups.everyone.copy()
            texts, ids = groups.prompt_texts
            who = {
                "group": groups.group.copy(),
                "_group": everyone,
                "prompt": texts.copy(),
                "_prompt": everyone,
                "prompt_id": ids.copy(),
                "_prompt_id": everyone,
                "episode_seed": groups.episode_seed.copy(),
                "_episode_seed": everyone,
            }
        return who | of_samples(self, self.finished) if self.finished else who

    def _array(self, values: np.ndarray) -> Any:
        return torch.from_numpy(values).to(self.device) if self.array_backend == "torch" else values
