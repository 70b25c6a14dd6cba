"""What the judge of the contract does where no policy is given: a function of what is seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from unirl_env.envs.contract import told
from unirl_env.envs.laws import digest
from unirl_env.errors import ContractError

__all__ = ["Act", "default_act"]

Act = Callable[[dict[str, Any]], Any]


def default_act(env: VectorEnv) -> Act:
    """The environment's own `example_act`; without one, samples of the action space, keyed by what is seen.

    Raises:
        ContractError: If the `example_act` is no function.
    """
    own = told(env, "example_act")
    if own is not None and not callable(own):
        raise ContractError(f"`example_act` must be a function of an observation, got {own!r}.")
    # A wrapper that changes actions knows none of its own.
    if own is not None and env.action_space == env.unwrapped.action_space:
        return own

    def act(obs: dict[str, Any]) -> Any:
        env.action_space.seed(digest(obs))
        drawn = env.action_space.sample()
        like = next(iter(obs.values()))
        return _as_tensors(drawn, like.device) if isinstance(like, torch.Tensor) else drawn

    return act


def _as_tensors(drawn: Any, device: torch.device) -> Any:
    """Arrays as tensors, in mappings and tuples, too."""
    if isinstance(drawn, Mapping):
        return {name: _as_tensors(part, device) for name, part in drawn.items()}
    if isinstance(drawn, tuple):
        return tuple(_as_tensors(part, device) for part in drawn)
    return torch.from_numpy(drawn).to(device) if isinstance(drawn, np.ndarray) else drawn
