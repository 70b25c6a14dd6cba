"""What all rollouts share: environments by their size, and episodes in lots."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from unirl_env.envs.contract import env_attr
from unirl_env.episode import EpisodeBatch
from unirl_env.errors import ConfigError
from unirl_env.rewards.background import settled
from unirl_env.rollouts.requests import EpisodeRequest, list_episodes
from unirl_env.types import Prompt
from unirl_env.wrappers.reward import leave_invalid

__all__ = ["MakeEnv", "Rollout", "Told", "distinct", "of_lot"]

MakeEnv = Callable[..., gym.vector.VectorEnv]


class Told:
    """What an environment says of itself, by attribute, whatever wrappers are around it.

    Rollouts read nothing of an environment but

    - of every one `playing`, `finished`, and `scores` and `judged` of its `RewardWrapper`;
    - where latents are denoised `num_steps` and `stochastic_steps`;
    - where texts are written `max_new_tokens`, `encodings` and `language_model`;
    - of a hybrid one `unified_model` in the place of `language_model`.

    `DenoiseVectorEnv`, `TokenVectorEnv` and `HybridVectorEnv` say what each of them is.

    Args:
        env: Wrapped or not.

    Raises:
        ContractError: On reading what no environment or wrapper says.
    """

    def __init__(self, env: gym.vector.VectorEnv):
        self._env = env

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return env_attr(self._env, name)


class Rollout:
    """Plays whole episodes of scored environments.

    Args:
        make_env: `make_env(num_envs)`, or `make_env(num_envs, num_steps=...)`, returns an environment with
            the torch backend and autoreset DISABLED; called once for each size that is asked for.
        batch_size: Episodes played together; None takes all at once. Bounds memory.

    Raises:
        ConfigError: If `batch_size` is not positive.
    """

    def __init__(self, make_env: MakeEnv, *, batch_size: int | None = None):
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"`batch_size` must be at least 1, got {batch_size}.")
        self.make_env, self.batch_size = make_env, batch_size
        self._envs: dict[tuple[int, int | None], gym.vector.VectorEnv] = {}

    def close(self) -> None:
        """Close the environments."""
        for env in self._envs.values():
            env.close()
        self._envs.clear()

    def _in_lots(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        sample_offset: Sequence[int] | None,
        first_group: int,
        weights_version: int,
        play: Callable[[Sequence[EpisodeRequest]], dict[str, Any]],
    ) -> EpisodeBatch:
        """All episodes of P x G, as `play` returns the fields of each lot's batch.

        Raises:
            ConfigError: If there is nothing to play, or `sample_offset` does not fit the prompts.
        """
        episodes = list_episodes(prompts, group_size, sample_offset, first_group)
        size = min(self.batch_size or len(episodes), len(episodes))
        lots = [episodes[start : start + size] for start in range(0, len(episodes), size)]
        # Scores that are on their way are asked for at the end: one lot is judged while the next is played.
        played = [play(lot) for lot in lots]
        batches = []
        for lot, fields in zip(lots, played, strict=True):
            fields["scores"] = settled(fields["scores"])
            group = torch.tensor([episode.group for episode in lot])
            batches.append(EpisodeBatch(**fields, group=group, weights_version=weights_version))
        return batches[0] if len(batches) == 1 else EpisodeBatch.cat(batches)

    def _env(self, num_envs: int, num_steps: int | None = None) -> gym.vector.VectorEnv:
        key = (num_envs, num_steps)
        if key not in self._envs:
            steps = {} if num_steps is None else {"num_steps": num_steps}
            env = self._envs[key] = self.make_env(num_envs, **steps)
            leave_invalid(env)  # scores are read here, not rewards, and a failed one is data
            if hasattr(env.unwrapped, "info_objects"):
                # Nobody reads plain data here: samples are taken as they are.
                env.unwrapped.info_objects = True
        return self._envs[key]


def of_lot(lot: Sequence[EpisodeRequest], **more: Any) -> dict[str, Any]:
    """The options of a reset that plays the episodes of `lot`, and `more` that are not None."""
    return {
        "prompts": [episode.prompt for episode in lot],
        "sample_offset": [episode.sample for episode in lot],
        "group_size": 1,
        **{name: value for name, value in more.items() if value is not None},
    }


def distinct(keys: Sequence[Hashable]) -> tuple[Tensor, Tensor]:
    """The first of B episodes with each key `[P]`, and for each episode which of them it shares `[B]`."""
    places: dict[Hashable, int] = {}
    first, row = [], []
    for i, key in enumerate(keys):
        if key not in places:
            places[key] = len(first)
            first.append(i)
        row.append(places[key])
    return torch.tensor(first), torch.tensor(row)
