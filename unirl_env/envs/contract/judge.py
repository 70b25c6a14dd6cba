"""The judge of the contract: tests any generative vector environment, ours or a user's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv

from unirl_env.arguments.indices import as_numpy
from unirl_env.envs.contract import env_attr
from unirl_env.envs.contract.comparing import (
    Act,
    all_alike,
    check_branches,
    default_act,
    digest,
    ended,
    law,
    played,
    same,
    seeds,
)
from unirl_env.envs.contract.info_laws import check_copies, check_info
from unirl_env.envs.contract.laws import check_own_laws, named_laws
from unirl_env.errors import ConfigError, ContractError


def check_vector_env(
    env: VectorEnv, act: Act | None = None, *, seed: int = 0, max_steps: int = 100_000
) -> None:
    """Play a few episodes and compare every promise of the contract with what happens.

    The contract is `unirl_env.envs.contract.GenerativeEnv`: the laws of every environment, and then those
    that this one names in its `laws`.

    Args:
        env: A generative vector environment, wrapped or not; it is left freshly reset. Laws about groups and
            copies need `num_envs` of at least 2 to bite.
        act: `act(obs) -> actions`, deterministic; by default the environment's `example_act`, or actions that
            are drawn from its action space.
        seed: Key of the episodes.
        max_steps: Episodes that are longer count as endless.

    Raises:
        ContractError: With the law that was broken.
    """
    act, laws = act or default_act(env), named_laws(env)
    _check_declarations(env)
    _check_order_guard(env)
    obs, info = env.reset(seed=seed)
    _check_observation(env, obs)
    check_info(env, info)
    _check_seeding(env, obs, info, seed)
    _check_keyed_noise(env, seed)
    _check_options(env, info, seed)
    first = _play(env, act, env.reset(seed=seed)[0], max_steps)
    law(
        first == _play(env, act, env.reset(seed=seed)[0], max_steps),
        "The same seed and actions must give the same episodes.",
    )
    _check_end(env, act, seed, max_steps)
    _check_snapshots(env, act, seed, max_steps)
    _check_ownership(env, act, seed)
    check_own_laws(laws, env, act, seed, max_steps)
    check_copies(env, act, seed)
    env.reset(seed=seed)


def _check_declarations(env: VectorEnv) -> None:
    mode = env.metadata.get("autoreset_mode")
    law(
        isinstance(mode, AutoresetMode) and mode is not AutoresetMode.SAME_STEP,
        f"`metadata['autoreset_mode']` must be AutoresetMode.NEXT_STEP or DISABLED, got {mode!r}: the last "
        "observation of an episode must be seen.",
    )
    single: Any = env.single_observation_space
    law(
        isinstance(single, spaces.Dict),
        f"`single_observation_space` must be a Dict, got {type(single).__name__}.",
    )
    nested = [name for name, space in single.items() if isinstance(space, spaces.Dict | spaces.Tuple)]
    law(not nested, f"Observations must be flat, got nested spaces at {nested}: many libraries refuse them.")
    for method in ("snapshot", "restore", "fork"):
        law(callable(getattr(env.unwrapped, method, None)), f"The environment must have `{method}`.")


def _check_order_guard(env: VectorEnv) -> None:
    if env_attr(env, "started"):
        return
    try:
        env.step(env.action_space.sample())
    except ResetNeeded:
        return
    raise ContractError("`step` before the first `reset` must raise gymnasium.error.ResetNeeded.")


def _check_observation(env: VectorEnv, obs: dict[str, Any]) -> None:
    expected: Any = env.single_observation_space
    law(set(obs) == set(expected), f"Observation keys must be {sorted(expected)}, got {sorted(obs)}.")
    kinds = {isinstance(value, torch.Tensor) for value in obs.values()}
    law(len(kinds) == 1, "Observations must be all arrays or all tensors, got both.")
    for name, space in expected.items():
        value, shape = obs[name], (env.num_envs, *space.shape)
        got = tuple(value.shape)
        law(got == shape, f"`obs[{name!r}]` must have shape {shape}, got {got}.")
        array = as_numpy(value)
        floating = space.dtype.kind == "f"
        # Tensors may be half precision, and flags bool; arrays are what the space says.
        fits = (array.dtype.kind == "f") == floating if kinds == {True} else value.dtype == space.dtype
        law(fits, f"`obs[{name!r}]` must have the dtype of its space, {space.dtype}, got {value.dtype}.")
        law(not floating or bool(np.isfinite(array).all()), f"`obs[{name!r}]` must be finite.")
        inside = all(space.contains(np.asarray(row, dtype=space.dtype)) for row in array)
        law(inside, f"`obs[{name!r}]` must lie in its space {space}.")


def _check_seeding(env: VectorEnv, obs: dict[str, Any], info: dict[str, Any], seed: int) -> None:
    law(
        digest(obs, info) == digest(*env.reset(seed=seed)),
        "`reset` with the same seed must give the same episodes, bit for bit.",
    )
    other_info = env.reset(seed=seed + 1)[1]
    law(
        not set(seeds(info)) & set(seeds(other_info)),
        "`reset` with another seed must give other episodes.",
    )
    law(
        not set(seeds(other_info)) & set(seeds(env.reset()[1])),
        "`reset` without a seed must go on to new episodes.",
    )


def _check_keyed_noise(env: VectorEnv, seed: int) -> None:
    """An episode must begin alike wherever it stands in the batch."""
    env.reset(seed=seed, options={"group_size": 1})
    prompts, offsets = list(env_attr(env, "playing")), list(range(env.num_envs))
    options = {"group_size": 1, "prompts": prompts, "sample_offset": offsets}
    straight, info = env.reset(seed=seed, options=options)
    turned, turned_info = env.reset(
        seed=seed, options={"group_size": 1, "prompts": prompts[::-1], "sample_offset": offsets[::-1]}
    )
    law(
        same({name: as_numpy(value)[::-1] for name, value in straight.items()}, turned)
        and seeds(info)[::-1] == seeds(turned_info),
        "Noise must be keyed by (seed, prompt, sample): an episode must not depend on its place.",
    )


def _check_options(env: VectorEnv, info: dict[str, Any], seed: int) -> None:
    for options in ({"no_such_option": 1}, {"group_size": env.num_envs + 1}):
        try:
            env.reset(options=options)
        except ConfigError:
            continue
        raise ContractError(f"`reset` must refuse the options {options} with ConfigError.")
    alike, one_group = env.reset(seed=seed, options={"group_size": env.num_envs, "same_noise": True})
    check_info(env, one_group)
    law(len(set(as_numpy(one_group["group"]).tolist())) == 1, "`group_size` must be honoured by `reset`.")
    law(all_alike(alike), "With `same_noise` the episodes of a group must begin alike.")
    law(
        as_numpy(env.reset(seed=seed)[1]["group"]).tolist() == as_numpy(info["group"]).tolist(),
        "The options of a `reset` must not outlive the next one.",
    )


def _check_end(env: VectorEnv, act: Act, seed: int, max_steps: int) -> None:
    """What comes after the end; all episodes have just ended."""
    if env.metadata["autoreset_mode"] is AutoresetMode.DISABLED:
        try:
            env.step(env.action_space.sample())
        except ResetNeeded:
            return
        raise ContractError(
            "Stepping a finished batch in mode DISABLED must raise gymnasium.error.ResetNeeded."
        )
    obs, info = env.reset(seed=seed)
    over, group, before = np.zeros(env.num_envs, dtype=bool), as_numpy(info["group"]), seeds(info)
    restarting = over
    for _ in range(max_steps):
        obs, _, terminated, truncated, _ = env.step(act(obs))
        over = over | ended(terminated, truncated)
        restarting = ~np.isin(group, group[~over])
        if restarting.any():
            break
    try:
        obs, rewards, terminated, truncated, info = env.step(env.action_space.sample())
    except ResetNeeded as error:
        raise ContractError("In mode NEXT_STEP the step after the end must reset, not raise.") from error
    over = ended(terminated, truncated)
    law(
        not over[restarting].any() and not (as_numpy(rewards)[restarting] != 0).any(),
        "In mode NEXT_STEP the step after the end must only reset: no reward, no end.",
    )
    law(
        not set(env_attr(env, "finished")) & set(np.flatnonzero(restarting).tolist()),
        "The step that resets must not bring samples.",
    )
    law(
        not {seeds(info)[row] for row in np.flatnonzero(restarting)} & set(before),
        "In mode NEXT_STEP the step after the end must start new episodes.",
    )
    _check_observation(env, obs)
    check_info(env, info)


def _check_ownership(env: VectorEnv, act: Act, seed: int) -> None:
    """Arrays belong to who receives them; tensors are shared, because copies would cost more than a step."""
    actions = act(env.reset(seed=seed)[0])
    obs, *_ = env.step(actions)
    parts = actions.values() if isinstance(actions, Mapping) else [actions]
    if not all(isinstance(value, np.ndarray) for value in (*parts, *obs.values())):
        return
    before = digest(obs)
    for array in (*parts, *obs.values()):
        array[...] = 0
    law(
        before == digest(env.unwrapped.restore(env.unwrapped.snapshot())[0]),
        "Actions and observations must be copies: an agent may write into its arrays.",
    )


def _check_snapshots(env: VectorEnv, act: Act, seed: int, max_steps: int) -> None:
    obs, info = env.reset(seed=seed)
    stepped = env.step(act(obs))
    done = ended(*stepped[2:4])
    if done.all():
        # Nothing would be left to play.
        done, (obs, info) = np.zeros_like(done), env.reset(seed=seed)
    else:
        obs, info = stepped[0], stepped[4]
    check_branches(env, act, obs, info, done, max_steps)


def _play(env: VectorEnv, act: Act, obs: dict[str, Any], max_steps: int) -> list[int]:
    """Go on from `obs` to the end of all; what happened, as one number per step."""
    trace, left = [], 0
    for step in played(env, act, obs, max_steps):
        _check_observation(env, step.obs)
        law(
            all(env_attr(env, "finished").get(row) is not None for row in step.due),
            "`finished` must hold the sample of every episode that has just finished.",
        )
        check_info(env, step.info, step.due)
        outcome = {"rewards": step.rewards, "over": step.over, "cut": step.cut}
        trace.append(digest({**step.obs, **outcome}))
        left = int((~step.over[step.rows]).sum())
    law(not left, f"Episodes must end, got {left} that did not in {max_steps} steps.")
    return trace
