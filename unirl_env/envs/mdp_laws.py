"""The laws of environments of a Markov decision process, beside those of every mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from unirl_env.envs.contract import told
from unirl_env.envs.laws import as_array, digest, law, same, some_rows
from unirl_env.errors import UnirlError

__all__ = ["check_mdp"]

Act = Callable[[dict[str, Any]], Any]


def check_mdp(env: VectorEnv, act: Act, seed: int, max_steps: int = 100_000) -> None:
    """Offer malformed actions, and play a batch twice in another order.

    Args:
        env: A generative vector environment with `Discrete` actions or a `Box`.
        act: `act(obs) -> actions`.
        seed: Key of the episodes.
        max_steps: Where to stop looking.

    Raises:
        ContractError: With the law that was broken.
    """
    space = env.single_action_space
    law(
        isinstance(space, spaces.Discrete | spaces.Box),
        f"`single_action_space` must be Discrete or a Box where a process is played, got {space}.",
    )
    _check_refusals(env, act, seed)
    _check_place(env, act, seed, max_steps)


def _check_refusals(env: VectorEnv, act: Act, seed: int) -> None:
    obs = _copied(env.reset(seed=seed)[0])
    good = as_array(act(env.reset(seed=seed)[0])).copy()
    bad = [good[:, None], {"action": good}]
    if isinstance(env.single_action_space, spaces.Discrete):
        beyond = int(env.single_action_space.start + env.single_action_space.n)
        bad += [np.full_like(good, beyond), good.astype(np.float32) + 0.5]
    else:
        bad.append(np.full_like(good, np.nan))
    for actions in bad:
        try:
            env.step(_like(env, actions))
        except (UnirlError, ValueError, TypeError):
            continue
        law(False, "Actions of another shape or dtype, or outside what can be done, must be refused.")
    now = env.unwrapped.restore(env.unwrapped.snapshot())[0]
    law(same(obs, _copied(now)), "A refused action must change nothing.")


def _check_place(env: VectorEnv, act: Act, seed: int, max_steps: int) -> None:
    """What an episode sees must not depend on its place in the batch, to its end."""
    env.reset(seed=seed, options={"group_size": 1})
    prompts, offsets = list(told(env, "playing")), list(range(env.num_envs))
    straight = {"group_size": 1, "prompts": prompts, "sample_offset": offsets}
    turned = {"group_size": 1, "prompts": prompts[::-1], "sample_offset": offsets[::-1]}
    others = {**straight, "sample_offset": [0, *(env.num_envs + offset for offset in offsets[1:])]}
    obs, _ = env.reset(seed=seed, options=straight)
    over, history = np.zeros(env.num_envs, dtype=bool), []
    while not over.all() and len(history) < max_steps:
        actions = as_array(act(obs)).copy()
        obs, _, terminated, truncated, _ = env.step(_like(env, actions))
        ended = as_array(terminated) | as_array(truncated)
        history.append((actions, _copied(obs), ended.copy(), over.copy()))
        over = over | ended
    last = env.num_envs - 1
    # All in another order; and the first one among others.
    for options, places in ((turned, {row: last - row for row in offsets}), (others, {0: 0})):
        env.reset(seed=seed, options=options)
        for actions, seen, ended, before in history:
            rows = [row for row in places if not before[row]]
            if not rows:
                break
            taken = actions[::-1].copy() if options is turned else actions.copy()
            obs, _, terminated, truncated, _ = env.step(_like(env, taken))
            now, now_ended = _copied(obs), as_array(terminated) | as_array(truncated)
            for row in rows:
                law(
                    digest(some_rows(seen, [row])) == digest(some_rows(now, [places[row]]))
                    and bool(ended[row]) == bool(now_ended[places[row]]),
                    "An episode must not depend on its place in the batch, nor on the others.",
                )


def _like(env: VectorEnv, actions: Any) -> Any:
    """Actions in the array type of the environment."""
    if told(env, "array_backend") != "torch" or not isinstance(actions, np.ndarray):
        return actions
    return torch.from_numpy(actions)


def _copied(obs: dict[str, Any]) -> dict[str, Any]:
    return {name: as_array(value).copy() for name, value in obs.items()}
