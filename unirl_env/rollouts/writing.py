"""Texts of many episodes at once: an engine proposes, and the environment is stepped through its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from unirl_env.envs.contract import env_attr
from unirl_env.rollouts.engines.base import Answer, Request
from unirl_env.rollouts.texts import Written
from unirl_env.rollouts.verdicts import Verdicts
from unirl_env.types import Prompt

__all__ = ["Ask", "Played", "write"]

Ask = Callable[[Sequence[Request]], list[Answer]]


@dataclass
class Played:
    """How far B episodes have come.

    Attributes:
        obs: The last observation.
        done: `[B]` bool, on the CPU, which have ended.
        truncated: `[B]` bool, on the CPU, which of them a length limit ended.
        verdicts: What was said of those that ended.
    """

    obs: dict[str, Any]
    done: Tensor
    truncated: Tensor
    verdicts: Verdicts

    @classmethod
    def begun(cls, obs: dict[str, Any], count: int) -> Played:
        """At their beginning."""
        nothing = torch.zeros(count, dtype=torch.bool)
        return cls(obs, nothing, nothing.clone(), Verdicts(count))

    def step(self, env: gym.vector.VectorEnv, action: Any) -> None:
        """Step the environment, and note what came of it."""
        self.obs, _, ended, cut, _ = env.step(action)
        self.verdicts.take(env)
        ended, cut = torch.as_tensor(ended).cpu(), torch.as_tensor(cut).cpu()
        self.truncated = self.truncated | (cut & ~self.done)
        self.done = self.done | ended | cut

    @property
    def writing(self) -> Tensor:
        """`[B]` bool, on the CPU, which episodes are in the middle of their text."""
        if "phase" not in self.obs:
            return ~self.done
        return ~self.done & (torch.as_tensor(self.obs["phase"]).cpu() == 0)


def write(
    env: gym.vector.VectorEnv,
    played: Played,
    ask: Ask,
    prompts: Sequence[Prompt],
    seeds: Tensor,
    wrap: Callable[[Tensor], Any] = lambda token: token,
) -> Written:
    """Write the texts of all episodes to their ends.

    Args:
        env: A token or a hybrid environment with the torch backend and autoreset DISABLED.
        played: The episodes, which are changed.
        ask: Answers requests.
        prompts: B of them.
        seeds: `[B]` int64, the key of each episode's draws.
        wrap: Makes the environment's action of tokens `[B]`.

    Returns:
        The log-probabilities of what was written.
    """
    model = env_attr(env, "language_model", None) or env_attr(env, "unified_model").text
    written = Written(len(prompts), played.obs["tokens"].shape[1])
    while (writing := played.writing).any():
        rows = writing.nonzero().flatten()
        requests = _requests(played.obs, rows, env, prompts, seeds)
        actions = written.lay_out(ask(requests), rows, [r.position for r in requests], model.eos_ids)
        for action in actions:
            played.step(env, wrap(action))
            if not played.writing.any():
                break
    return written


def _requests(
    obs: dict[str, Any], rows: Tensor, env: gym.vector.VectorEnv, prompts: Sequence[Prompt], seeds: Tensor
) -> list[Request]:
    """What is asked for the episodes at `rows` `[b]`, whose texts are unfinished."""
    tokens = torch.as_tensor(obs["tokens"])[rows].tolist()
    length = torch.as_tensor(obs["length"])[rows].tolist()
    prompt_length = torch.as_tensor(obs["prompt_length"])[rows].tolist()
    encodings, most = env_attr(env, "encodings"), env_attr(env, "max_new_tokens")
    return [
        Request(
            tokens=tuple(tokens[i][: length[i]]),
            prompt=prompts[row],
            inputs=encodings[row].inputs,
            seed=int(seeds[row]),
            position=length[i] - prompt_length[i],
            max_new_tokens=most - (length[i] - prompt_length[i]),
        )
        for i, row in enumerate(rows.tolist())
    ]
