"""What the judge of the contract does where no policy is given: a function of what is seen."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from unirl_env.envs.laws import as_array, digest

__all__ = ["Act", "default_act"]

Act = Callable[[dict[str, Any]], Any]


def default_act(env: VectorEnv) -> Act:
    """Pull latents towards zero; draw other actions from the action space, keyed by the observation."""
    if isinstance(env.single_action_space, spaces.Dict):
        return _hybrid_act(env)

    def act(obs: dict[str, Any]) -> Any:
        if "latent" in obs and tuple(obs["latent"].shape) == env.action_space.shape:
            return obs["latent"] * 0.9
        env.action_space.seed(digest(obs))
        return env.action_space.sample()

    return act


def _hybrid_act(env: VectorEnv) -> Act:
    """Each episode acts by what it has said itself; every third token opens a picture, where any can."""
    space = env.single_action_space
    opens = getattr(getattr(env.unwrapped, "unified_model", None), "opens", ())

    def drawn(name: str, keys: list[int]) -> np.ndarray:
        chosen = [int(space[name].start) + key % int(space[name].n) for key in keys]
        if name == "token" and opens:
            chosen = [
                token if key % 3 else opens[key % len(opens)] for token, key in zip(chosen, keys, strict=True)
            ]
        return np.array(chosen, dtype=np.int64)

    def act(obs: dict[str, Any]) -> dict[str, Any]:
        said, lengths = as_array(obs["tokens"]), as_array(obs["length"])
        painted = as_array(obs["image_length"]) if "image_length" in obs else np.zeros_like(lengths)
        keys = [
            zlib.crc32(tokens[:length].tobytes(), int(count))
            for tokens, length, count in zip(said, lengths, painted, strict=True)
        ]
        actions: dict[str, Any] = {}
        for name in space:
            if name == "latent":
                actions[name] = obs["latent"] * 0.9
            else:
                values = drawn(name, keys)
                live = isinstance(obs["length"], torch.Tensor)
                actions[name] = torch.from_numpy(values).to(obs["length"].device) if live else values
        return actions

    return act
