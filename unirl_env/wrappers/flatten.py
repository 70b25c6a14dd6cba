"""Flat observations and actions, for agents that know nothing of pictures and contexts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space

from unirl_env.envs.snapshot import SPACES, draws_of, set_draws
from unirl_env.errors import ConfigError
from unirl_env.wrappers.base import Wrapper

BESIDE = ("sigma_next", "step", "stochastic", "prompt_length", "is_action", "phase")
"""Entries that are not seen unless they are named: they follow from the others, or tell of the training."""
LARGEST = 4096
"""Numbers; entries with more are not seen unless they are named. A dense layer over one of SD3's encoded
prompts at full length would have more weights than the network that is trained."""

ALWAYS = ("latent", "tokens")
"""Entries that are seen whatever their size: without them there is nothing to act on."""

logger = logging.getLogger(__name__)


class FlattenForPPO(Wrapper):
    """One flat `Box` to see and one to act in, so that unmodified PPO of RLlib or SB3 can train.

    The observation is `[B, D]` float32: entries of the environment's own, in alphabetical order, flattened
    and joined. Without `keys`, they are what a policy needs to know:

    - of a denoising environment, `latent`, `sigma`, and the encoded prompt (`prompt_embeds`,
      `pooled_prompt_embeds`, ... as the model has them; a model without prompts has none);
    - of a token environment, `tokens` (the prompt and what follows it), `length`, and the model's other
      inputs, such as the prompt's pictures.

    Entries of more than 4096 numbers are left out then, with a warning, and are seen where `keys` name them.
    The action is the next latent as `[B, A]`, or the next token as it is. `flatten_for_ppo` is the same for a
    single environment.

    Args:
        env: A generative vector environment.
        keys: The entries of the observation that the agent sees.

    Raises:
        ConfigError: If an entry is missing or is not a `Box`, or if no prompt would be seen.
    """

    def __init__(self, env: VectorEnv, keys: Sequence[str] | None = None):
        super().__init__(env)
        boxes = _boxes(env.single_observation_space, keys)
        self.keys = list(boxes)
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
        type(self).__init__(self, state["env"], state["keys"])
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
        obs, *rest = self.env.step(_shaped(actions, self.env.action_space.shape))
        return self._flat(obs), *rest

    def _flat(self, obs: dict[str, Any]) -> Any:
        columns = [obs[key].reshape(self.num_envs, -1) for key in self.keys]
        if isinstance(columns[0], torch.Tensor):
            return torch.cat([column.float() for column in columns], dim=1)
        return np.concatenate(columns, axis=1, dtype=np.float32)


def flatten_for_ppo(env: gym.Env, keys: Sequence[str] | None = None) -> gym.Env:
    """`FlattenForPPO` for a single environment, made of wrappers of Gymnasium that can be pickled.

    Raises:
        ConfigError: If an entry is missing or is not a `Box`, or if no prompt would be seen.
    """
    boxes = _boxes(env.observation_space, keys)
    space = env.action_space
    flat = _flat_action(space)
    env = gym.wrappers.TransformObservation(env, partial(_joined, keys=list(boxes)), _joined_space(boxes))
    if flat is space:
        return env
    return gym.wrappers.TransformAction(env, partial(np.reshape, shape=space.shape), flat)


def _joined(obs: Mapping[str, np.ndarray], keys: Sequence[str]) -> np.ndarray:
    return np.concatenate([obs[key].ravel() for key in keys], dtype=np.float32)


def _joined_space(boxes: Mapping[str, Box]) -> Box:
    return Box(
        low=np.concatenate([box.low.ravel() for box in boxes.values()]).astype(np.float32),
        high=np.concatenate([box.high.ravel() for box in boxes.values()]).astype(np.float32),
        dtype=np.float32,
    )


def _boxes(space: gym.Space, keys: Sequence[str] | None) -> dict[str, Box]:
    """The entries of an observation that an agent sees, by name."""
    boxes = {name: part for name, part in _parts(space).items() if isinstance(part, Box)}
    if keys is None:
        return {key: boxes[key] for key in _seen(boxes)}
    if not keys or isinstance(keys, str):
        raise ConfigError(f"`keys` must be a list with an entry at least, got {keys!r}.")
    for key in keys:
        if key not in boxes:
            raise ConfigError(f"`keys` must name Box entries of the observation {[*boxes]}, got {key!r}.")
    return {key: boxes[key] for key in sorted(keys)}


def _parts(space: gym.Space) -> Mapping[str, gym.Space]:
    return space.spaces if isinstance(space, gym.spaces.Dict) else {}


def _seen(boxes: Mapping[str, Box]) -> list[str]:
    """The entries that a policy needs to know, as far as they are small enough."""
    needed = sorted(set(boxes) - set(BESIDE))
    if not needed:
        raise ConfigError(f"The observation must have Box entries to be flattened, got {[*boxes]}.")
    large = [name for name in needed if np.prod(boxes[name].shape) > LARGEST and name not in ALWAYS]
    told = ", ".join(f"{name} {boxes[name].shape}" for name in large)
    prompts = set(needed) - {"latent", "sigma"}
    if prompts and prompts <= set(large):
        raise ConfigError(
            f"`flat` must show the agent the prompt, got entries of more than {LARGEST} numbers: {told}; try "
            f"`flat={needed}` to have it see them, or `flat={sorted(set(needed) - prompts)}` for an agent "
            "that knows no prompt."
        )
    if large:
        logger.warning(
            "The flat observation leaves out %s: entries of more than %d numbers; `flat=[...]` names those "
            "that the agent is to see.",
            *(told, LARGEST),
        )
    return [name for name in needed if name not in large]


def _shaped(actions: Any, shape: tuple[int, ...] | None) -> Any:
    # Without a batch's own form there is nothing to see to: lists of tokens are the environment's to judge.
    return actions.reshape(shape) if hasattr(actions, "reshape") else actions


def _flat_action(space: gym.Space) -> gym.Space:
    """The action space of a flat agent; tokens stay as they are."""
    if isinstance(space, gym.spaces.Discrete):
        return space
    if isinstance(space, gym.spaces.Dict):
        raise ConfigError(
            f"The action space must be a Box to be flattened, got the phases {list(space)} of a hybrid "
            "environment, which agents of one flat action cannot play; try one of the model's views as an "
            "environment of its own, or this library's agents."
        )
    if not isinstance(space, Box):
        raise ConfigError(f"The action space must be a Box or Discrete to be flattened, got {space}.")
    return Box(low=space.low.ravel(), high=space.high.ravel(), dtype=space.low.dtype.type)
