"""One episode of a vector environment, in the words of `gymnasium.Env`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from unirl_env.arguments.copies import carried_spec
from unirl_env.envs.contract import env_attr
from unirl_env.envs.info import of_row
from unirl_env.envs.snapshot import draws_of, set_draws
from unirl_env.errors import ConfigError


class SingleEnv(gym.Env):
    """A numpy view of a generative vector environment of one episode.

    Observations, actions and rewards are those of the vector environment without their batch axis; numbers
    such as `sigma` come as arrays of one. `info` is plain data: `prompt` (its text), `prompt_id`, `group`,
    `episode_seed`, and at the end `sample` (a mapping of arrays; of texts `text`, whether it was `truncated`,
    and `tokens`, whose first `length` were said and the others are -1) and `scores` (`valid`, and where they
    are there `value` and the mapping `parts`). With `info_objects`, it is a `Prompt`, a `Sample` and `Scores`
    of one.

    Args:
        vector_env: A vector environment of one episode, numpy backend, autoreset DISABLED.

    Raises:
        ConfigError: If the vector environment has another number of episodes or another backend.
    """

    def __init__(self, vector_env: gym.vector.VectorEnv):
        backend = env_attr(vector_env, "array_backend")
        if vector_env.num_envs != 1 or backend != "numpy":
            raise ConfigError(
                f"`vector_env` must be one episode with the numpy backend, got {vector_env.num_envs} with "
                f"{backend}; try gym.make_vec for more."
            )
        self.vector_env = vector_env
        self.metadata = {k: v for k, v in vector_env.metadata.items() if k != "autoreset_mode"}
        self.render_mode = vector_env.render_mode
        self.observation_space = _without_scalars(vector_env.single_observation_space)
        self.action_space = vector_env.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode; `options` are the vector environment's, with `prompt` for the only one."""
        super().reset(seed=seed)
        options = dict(options or {})
        if "prompt" in options:
            if "prompts" in options:
                raise ConfigError("`options` must have either `prompt` or `prompts`, got both; try `prompt`.")
            options["prompts"] = [options.pop("prompt")]
        obs, info = self.vector_env.reset(seed=seed, options=options)
        return _first(obs), self._single(info)

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Take one step."""
        batched = _map(action, lambda part: np.asanyarray(part)[None])
        obs, reward, terminated, truncated, info = self.vector_env.step(batched)
        return _first(obs), float(reward[0]), bool(terminated[0]), bool(truncated[0]), self._single(info)

    def render(self) -> np.ndarray | str | None:
        """The picture that the episode is heading for, or the text so far."""
        frames: Any = self.vector_env.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        """Close the vector environment."""
        self.vector_env.close()

    def _single(self, info: dict[str, Any]) -> dict[str, Any]:
        return _objects(info) if env_attr(self.vector_env, "info_objects") else of_row(info, 0)

    def __getstate__(self) -> dict[str, Any]:
        # The spaces are the vector environment's, and may be larger than all the rest.
        return {
            "vector_env": self.vector_env,
            "random": (self._np_random, self._np_random_seed),
            "draws": (draws_of(self.observation_space), draws_of(self.action_space)),
            "spec": carried_spec(self.spec),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        type(self).__init__(self, state["vector_env"])
        self._np_random, self._np_random_seed = state["random"]
        for space, draws in zip((self.observation_space, self.action_space), state["draws"], strict=True):
            set_draws(space, draws)
        self.spec = state["spec"]


def _map(action: Any, change: Callable[[Any], Any]) -> Any:
    """An action with all of its parts changed, or itself."""
    if isinstance(action, Mapping):
        return {name: change(part) for name, part in action.items()}
    return change(action)


def _first(obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.atleast_1d(array[0]) for name, array in obs.items()}


def _without_scalars(space: Any) -> spaces.Dict:
    """`space` with numbers as arrays of one: Stable-Baselines3's checker cannot read boxes of rank 0."""
    return spaces.Dict(
        {
            name: spaces.Box(part.low.item(), part.high.item(), (1,), part.dtype.type)
            if part.shape == ()
            else part
            for name, part in space.items()
        }
    )


def _objects(info: dict[str, Any]) -> dict[str, Any]:
    single = {
        "group": int(info["group"][0]),
        "prompt": info["prompt"][0],
        "episode_seed": int(info["episode_seed"][0]),
    }
    if "samples" in info:
        single["sample"] = info["samples"][0]
    return {**single, "scores": info["scores"]} if "scores" in info else single
