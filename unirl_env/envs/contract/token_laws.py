"""The laws of token environments, beside those of every mode."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from unirl_env.envs.contract import env_attr
from unirl_env.envs.contract.comparing import (
    Act,
    as_array,
    copied,
    due_samples,
    ended,
    law,
    like,
    same,
    some_rows,
)
from unirl_env.envs.token_rows import WAIT
from unirl_env.errors import UnirlError

__all__ = ["check_tokens"]

ENTRIES = ("tokens", "length", "prompt_length", "is_action")


def check_tokens(env: VectorEnv, act: Act, seed: int, max_steps: int = 100_000) -> None:
    """Play a batch and compare what is said with what is observed.

    Args:
        env: A generative vector environment whose actions are tokens.
        act: `act(obs) -> actions`.
        seed: Key of the episodes.
        max_steps: Where to stop looking.

    Raises:
        ContractError: With the law that was broken.
    """
    law(
        isinstance(env.single_action_space, spaces.Discrete),
        f"`single_action_space` must be Discrete where actions are tokens, got {env.single_action_space}.",
    )
    missing = [name for name in ENTRIES if name not in env.single_observation_space.spaces]
    law(not missing, f"Observations of tokens must have {list(ENTRIES)}, got none of {missing}.")
    obs, _ = env.reset(seed=seed)
    now = copied(obs)
    law(
        (now["length"] == now["prompt_length"]).all() and not now["is_action"].any(),
        "An episode must begin with its prompt alone: `length` is `prompt_length`, and nothing an action.",
    )
    _check_refusals(env, obs, now)
    done = np.zeros(env.num_envs, dtype=bool)
    for _ in range(max_steps):
        actions = act(obs)
        said = as_array(actions).copy()
        obs, _, terminated, truncated, _ = env.step(actions)
        before, now = now, copied(obs)
        over, cut = as_array(terminated), as_array(truncated)
        samples = env_attr(env, "finished")
        for row in np.flatnonzero(~done):
            _checksome_rows(some_rows(before, row), some_rows(now, row), int(said[row]))
        for row in due_samples(env, over | cut, (over | cut) & ~done):
            _check_sample(some_rows(now, row), samples[row], bool(cut[row]))
        done |= over | cut
        if done.all():
            return


def _checksome_rows(before: dict[str, Any], now: dict[str, Any], said: int) -> None:
    """One episode took one step."""
    start, end = int(before["length"]), int(now["length"])
    law(end > start, "An action must lengthen the conversation.")
    law(
        now["tokens"][start] == said and bool(now["is_action"][start]),
        "The action must be the next token of the conversation, and marked as an action.",
    )
    law(not now["is_action"][start + 1 : end].any(), "What follows an action by itself is no action.")
    law(
        all(np.array_equal(before[name][:start], now[name][:start]) for name in ("tokens", "is_action")),
        "What has been said must not change within an episode.",
    )
    law(now["prompt_length"] == before["prompt_length"], "`prompt_length` must not change within an episode.")


def _check_sample(row: dict[str, Any], sample: Any, cut: bool) -> None:
    """One episode ended."""
    said = row["tokens"][int(row["prompt_length"]) : int(row["length"])]
    law(
        sample.tokens is not None and np.array_equal(as_array(sample.tokens), said),
        "`Sample.tokens` must be all tokens after the prompt.",
    )
    law(isinstance(sample.text, str), "`Sample.text` must be the generated text.")
    law(sample.truncated == cut, "`Sample.truncated` must say whether the limit ended the text.")


def _check_refusals(env: VectorEnv, obs: dict[str, Any], now: dict[str, Any]) -> None:
    if env.metadata["autoreset_mode"] is AutoresetMode.DISABLED:
        after, _, terminated, truncated, _ = env.step(like(obs, np.full(env.num_envs, WAIT)))
        law(
            same(copied(after), now) and not ended(terminated, truncated).any(),
            "An episode that waits must stay as it is.",
        )
    try:
        env.step(like(obs, np.full(env.num_envs, int(env.single_action_space.n))))
    except (UnirlError, ValueError):
        return
    law(False, "A token that the vocabulary lacks must be refused.")
