"""Flat observations and actions, for agents that know nothing of pictures and contexts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space

from unirl_env.envs.by_snapshot import SPACES, draws_of, set_draws
from unirl_env.errors import ConfigError
from unirl_env.wrappers.base import Wrapper

__all__ = ["FlattenForPPO", "flatten_for_ppo"]

KEYS = ("latent", "sigma")


class FlattenForPPO(Wrapper):
    """One flat `Box` to see and one to act in, so that unmodified PPO of RLlib or SB3 can train.

    The observation is `[B, D]`: the chosen entries, in alphabetical order, flattened and joined. The action
    is the next latent as `[B, A]`. `flatten_for_ppo` is the same for a single environment.

    Args:
        env: A generative vector environment.
        keys: The entries of the observation that the agent sees.

    Raises:
        ConfigError: If an entry is missing or is not a `Box`.
    """

    def __init__(self, env: VectorEnv, keys: Sequence[str] = KEYS):
        super().__init__(env)
        self.keys = _checked_keys(env.single_observation_space, keys)
        boxes = {key: env.single_observation_space[key] for key in self.keys}
        self.single_observation_space = _joined_space(boxes)
        self.single_action_space = _flat_action(env.single_action_space)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def __getstate__(self) -> dict[str, Any]:
        # The spaces are those of the environment, flattened, and may be larger than all the rest.
        return {
            "env": self.env,
            "keys": self.keys,
            "draws": {name: draws_of(getattr(self, name)) for name in SPACES},
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["env"], state["keys"])
        for name, draws in state["draws"].items():
            set_draws(getattr(self, name), draws)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; the observation is `[B, D]`."""
        obs, info = self.env.reset(seed=seed, options=options)
        return self._flat(obs), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environment by flat actions `[B, A]`."""
        obs, *rest = self.env.step(actions.reshape(self.env.action_space.shape))
        return self._flat(obs), *rest

    def _flat(self, obs: dict[str, Any]) -> Any:
        columns = [obs[key].reshape(self.num_envs, -1) for key in self.keys]
        if isinstance(columns[0], torch.Tensor):
            return torch.cat([column.float() for column in columns], dim=1)
        return np.concatenate(columns, axis=1, dtype=np.float32)


def flatten_for_ppo(env: gym.Env, keys: Sequence[str] = KEYS) -> gym.Env:
    """`FlattenForPPO` for a single environment, made of wrappers of Gymnasium that can be pickled.

    Raises:
        ConfigError: If an entry is missing or is not a `Box`.
    """
    keys = _checked_keys(env.observation_space, keys)
    space = env.action_space
    boxes = {key: env.observation_space[key] for key in keys}
    env = gym.wrappers.TransformObservation(env, partial(_joined, keys=keys), _joined_space(boxes))
    return gym.wrappers.TransformAction(env, partial(np.reshape, shape=space.shape), _flat_action(space))


def _joined(obs: Mapping[str, np.ndarray], keys: Sequence[str]) -> np.ndarray:
    return np.concatenate([obs[key].ravel() for key in keys], dtype=np.float32)


def _joined_space(boxes: Mapping[str, Box]) -> Box:
    return Box(
        low=np.concatenate([box.low.ravel() for box in boxes.values()]).astype(np.float32),
        high=np.concatenate([box.high.ravel() for box in boxes.values()]).astype(np.float32),
        dtype=np.float32,
    )


def _checked_keys(space: gym.Space, keys: Sequence[str]) -> list[str]:
    known = list(space) if isinstance(space, gym.spaces.Dict) else []
    for key in keys:
        if key not in known or not isinstance(space[key], Box):
            raise ConfigError(f"`keys` must name Box entries of the observation {known}, got {key!r}.")
    if not keys or isinstance(keys, str):
        raise ConfigError(f"`keys` must be a list with an entry at least, got {keys!r}.")
    return sorted(keys)


def _flat_action(space: gym.Space) -> Box:
    if isinstance(space, gym.spaces.Dict):
        raise ConfigError(
            f"The action space must be a Box to be flattened, got the phases {list(space)} of a hybrid "
            "environment, which agents of one flat action cannot play; try one of the model's views as an "
            "environment of its own, or this library's agents."
        )
    if not isinstance(space, Box):
        raise ConfigError(
            f"The action space must be a Box to be flattened, got {space}; "
            f"try the agent without this wrapper, which takes token actions as they are."
        )
    return Box(low=space.low.ravel(), high=space.high.ravel(), dtype=space.dtype)
