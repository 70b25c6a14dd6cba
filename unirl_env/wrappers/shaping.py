"""Dense rewards that do not change what is optimal.

To scale or to clip a reward, Gymnasium's own `TransformReward` and `ClipReward` of
`gymnasium.wrappers.vector` serve; shaping needs the states, hence this wrapper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from unirl_env.arguments.copies import Carried
from unirl_env.arguments.indices import as_numpy
from unirl_env.arguments.values import is_number
from unirl_env.errors import ConfigError, ContractError
from unirl_env.wrappers.base import EpisodeRows, Wrapper


class PotentialShaping(Wrapper):
    """Add `gamma * phi(s') - phi(s)` to the reward of every step, with `phi = 0` where an episode has ended.

    Over an episode the terms telescope: its discounted return changes by exactly `-phi(s_0)`, whatever was
    done, so the optimal policies stay the same. Under group advantages the change also cancels between the
    episodes of a group that start from the same noise. Truncated episodes count as ended, since agents that
    compare whole episodes do not bootstrap from a last state; for an agent that does, the value that it
    learns lacks `phi` of that state.

    Args:
        env: A generative vector environment.
        potential: From an observation (a batch) to `phi` `[B]`, an array or a tensor.
        gamma: The agent's discount, in (0, 1].

    Raises:
        ConfigError: If `gamma` is out of range or `potential` cannot be called.

    Reference:
        Ng, Harada, Russell 1999, "Policy invariance under reward transformations", theorem 1.
    """

    def __init__(self, env: VectorEnv, potential: Callable[[Any], Any], gamma: float = 1.0):
        super().__init__(env)
        if not callable(potential):
            raise ConfigError(f"`potential` must be callable, got {type(potential).__name__}.")
        if not is_number(gamma) or not 0 < gamma <= 1:
            raise ConfigError(f"`gamma` must be in (0, 1], got {gamma!r}.")
        self.potential = potential
        self.gamma = float(gamma)
        self._rows = EpisodeRows(env.num_envs)
        self._phi = np.zeros(env.num_envs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "potential": Carried("potential", self.potential)}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and take the potential of the first states."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._rows.reset(info, options)
        self._phi = self._potential(obs)
        return obs, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environment and add the shaping term.

        Raises:
            ContractError: If the potential is not `[B]` or not finite.
        """
        obs, rewards, terminated, truncated, info = self.env.step(actions)
        change = self._rows.step(info, terminated, truncated)
        phi = self._potential(obs)
        gain = self.gamma * np.where(change.ended, 0.0, phi) - self._phi
        gain = np.where(change.stepped, gain, 0.0)
        self._phi = phi
        if isinstance(rewards, torch.Tensor):
            return obs, rewards + torch.from_numpy(gain).to(rewards), terminated, truncated, info
        rewards = np.asarray(rewards)
        return obs, rewards + gain.astype(rewards.dtype), terminated, truncated, info

    def _potential(self, obs: Any) -> np.ndarray:
        phi = as_numpy(self.potential(obs)).astype(np.float64)
        if phi.shape != (self.num_envs,) or not np.isfinite(phi).all():
            raise ContractError(
                f"`potential` must give {self.num_envs} finite numbers, got shape {list(phi.shape)} with "
                f"{int((~np.isfinite(phi)).sum())} that are not finite."
            )
        return phi
