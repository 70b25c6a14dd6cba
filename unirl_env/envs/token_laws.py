"""The laws of token environments, beside those of every mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from unirl_env.envs.contract import told
from unirl_env.envs.conversation import WAIT
from unirl_env.envs.laws import as_array, due_samples, law, same
from unirl_env.errors import UnirlError

__all__ = ["check_tokens"]

ENTRIES = ("tokens", "length", "prompt_length", "is_action")


def check_tokens(
    env: VectorEnv, act: Callable[[dict[str, Any]], Any], seed: int, max_steps: int = 100_000
) -> None:
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
    now = _copied(obs)
    law(
        (now["length"] == now["prompt_length"]).all() and not now["is_action"].any(),
        "An episode must begin with its prompt alone: `length` is `prompt_length`, and nothing an action.",
    )
    _check_refusals(env, now)
    done = np.zeros(env.num_envs, dtype=bool)
    for _ in range(max_steps):
        actions = act(obs)
        said = as_array(actions).copy()
        obs, _, terminated, truncated, _ = env.step(actions)
        before, now = now, _copied(obs)
        over, cut = as_array(terminated), as_array(truncated)
        samples = told(env, "finished")
        for row in np.flatnonzero(~done):
            _check_row(_row(before, row), _row(now, row), int(said[row]))
        for row in due_samples(env, over | cut, (over | cut) & ~done):
            _check_sample(_row(now, row), samples[row], bool(cut[row]))
        done |= over | cut
        if done.all():
            return


def _check_row(before: dict[str, Any], now: dict[str, Any], said: int) -> None:
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


def _check_refusals(env: VectorEnv, now: dict[str, Any]) -> None:
    if env.metadata["autoreset_mode"] is AutoresetMode.DISABLED:
        obs, _, terminated, truncated, _ = env.step(_full(env, WAIT))
        law(
            same(_copied(obs), now) and not (as_array(terminated) | as_array(truncated)).any(),
            "An episode that waits must stay as it is.",
        )
    try:
        env.step(_full(env, int(env.single_action_space.n)))
    except (UnirlError, ValueError):
        return
    law(False, "A token that the vocabulary lacks must be refused.")


def _full(env: VectorEnv, token: int) -> Any:
    actions = np.full(env.num_envs, token, dtype=np.int64)
    return torch.from_numpy(actions) if told(env, "array_backend") == "torch" else actions


def _copied(obs: dict[str, Any]) -> dict[str, Any]:
    """Live buffers would change under the comparison."""
    return {name: as_array(obs[name]).copy() for name in ENTRIES}


def _row(obs: dict[str, Any], row: int) -> dict[str, Any]:
    return {name: value[row] for name, value in obs.items()}
