"""Flat observations and actions, for agents that know nothing of pictures and contexts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from unirl_env.errors import ConfigError
from unirl_env.types import Scores

__all__ = ["ArrayInfo", "FlattenForPPO", "flatten_for_ppo"]

KEYS = ("latent", "sigma")


class FlattenForPPO(VectorWrapper):
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
        boxes = [env.single_observation_space[key] for key in self.keys]
        self.single_observation_space = Box(
            low=np.concatenate([box.low.ravel() for box in boxes]).astype(np.float32),
            high=np.concatenate([box.high.ravel() for box in boxes]).astype(np.float32),
            dtype=np.float32,
        )
        self.single_action_space = _flat_action(env.single_action_space)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

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


class ArrayInfo(VectorWrapper):
    """`info` as arrays and dicts of arrays only, in Gymnasium's own vector form.

    RLlib's env runner takes `info` apart into one dict per episode (Gymnasium's `DictInfoToList`) and refuses
    lists and objects. `samples` becomes an array of objects, and `scores` a dict with `value`, `valid` and
    the parts.
    """

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment."""
        obs, info = self.env.reset(seed=seed, options=options)
        return obs, _arrays(info)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environment."""
        *results, info = self.env.step(actions)
        return *results, _arrays(info)


def flatten_for_ppo(env: gym.Env, keys: Sequence[str] = KEYS) -> gym.Env:
    """`FlattenForPPO` for a single environment, put together from Gymnasium's own wrappers.

    Raises:
        ConfigError: If an entry is missing or is not a `Box`.
    """
    keys = _checked_keys(env.observation_space, keys)
    space = env.action_space
    env = gym.wrappers.FilterObservation(env, filter_keys=keys)
    env = gym.wrappers.FlattenObservation(env)
    return gym.wrappers.TransformAction(env, partial(np.reshape, shape=space.shape), _flat_action(space))


def _arrays(info: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in info.items():
        if isinstance(value, Scores):
            value = {"value": value.value, "valid": value.valid, **value.parts}
        if isinstance(value, dict):
            found[name] = _arrays(value)
        elif isinstance(value, (list, tuple)):
            found[name] = np.empty(len(value), dtype=object)
            found[name][:] = value
        else:
            found[name] = value.cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    return found


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
