"""The judge of the contract: tests any generative vector environment, ours or a user's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv

from unirl_env.errors import ConfigError, ContractError

__all__ = ["check_vector_env"]

Act = Callable[[dict[str, Any]], Any]
MAX_STEPS = 100_000


def check_vector_env(env: VectorEnv, act: Act | None = None, *, seed: int = 0) -> None:
    """Play a few episodes and compare every promise of the contract with what happens.

    Args:
        env: A generative vector environment, wrapped or not.
        act: `act(obs) -> actions`, deterministic; by default a latent is pulled towards zero, and other
            actions are drawn from the action space with a fixed seed.
        seed: Key of the episodes.

    Raises:
        ContractError: With the law that was broken.
    """
    act = act or _default_act(env)
    _check_declarations(env)
    _check_order_guard(env)
    obs, info = env.reset(seed=seed)
    _check_observation(env, obs)
    _check_info(env, info)
    _check_seeding(env, obs, seed)
    _check_keyed_noise(env, seed)
    _check_options(env)
    first = _play(env, act, env.reset(seed=seed)[0])
    _law(
        _same(first, _play(env, act, env.reset(seed=seed)[0])),
        "The same seed and actions must give the same episodes.",
    )
    _check_end(env, act)
    _check_snapshots(env, act, seed)


def _law(kept: bool, text: str) -> None:
    if not kept:
        raise ContractError(text)


def _check_declarations(env: VectorEnv) -> None:
    mode = env.metadata.get("autoreset_mode")
    _law(
        isinstance(mode, AutoresetMode) and mode is not AutoresetMode.SAME_STEP,
        f"`metadata['autoreset_mode']` must be AutoresetMode.NEXT_STEP or DISABLED, got {mode!r}: the last "
        "observation of an episode must be seen.",
    )
    single = env.single_observation_space
    _law(
        isinstance(single, spaces.Dict),
        f"`single_observation_space` must be a Dict, got {type(single).__name__}.",
    )
    nested = [name for name, space in single.items() if isinstance(space, spaces.Dict | spaces.Tuple)]
    _law(not nested, f"Observations must be flat, got nested spaces at {nested}: many libraries refuse them.")
    for method in ("snapshot", "restore", "fork"):
        _law(callable(getattr(env.unwrapped, method, None)), f"The environment must have `{method}`.")


def _check_order_guard(env: VectorEnv) -> None:
    if getattr(env.unwrapped, "started", False):
        return
    try:
        env.step(env.action_space.sample())
    except ResetNeeded:
        return
    raise ContractError("`step` before the first `reset` must raise gymnasium.error.ResetNeeded.")


def _check_observation(env: VectorEnv, obs: dict[str, Any]) -> None:
    expected = env.single_observation_space
    _law(set(obs) == set(expected), f"Observation keys must be {sorted(expected)}, got {sorted(obs)}.")
    for name, space in expected.items():
        value = obs[name]
        shape = (env.num_envs, *space.shape)
        _law(
            tuple(value.shape) == shape, f"`obs[{name!r}]` must have shape {shape}, got {tuple(value.shape)}."
        )
        if isinstance(value, np.ndarray):
            _law(
                space.dtype == value.dtype and all(space.contains(np.asarray(row)) for row in value),
                f"`obs[{name!r}]` must lie in its space {space}, got dtype {value.dtype}.",
            )
        elif value.is_floating_point():
            _law(bool(torch.isfinite(value).all()), f"`obs[{name!r}]` must be finite.")


def _check_info(env: VectorEnv, info: dict[str, Any]) -> None:
    for name in ("group", "prompt", "episode_seed"):
        _law(name in info, f"`info` must have {name!r}, got {sorted(info)}.")
        _law(len(info[name]) == env.num_envs, f"`info[{name!r}]` must have one entry per episode.")
    by_group: dict[int, set[str]] = {}
    for group, prompt in zip(info["group"], info["prompt"], strict=True):
        by_group.setdefault(int(group), set()).add(prompt.id)
    _law(all(len(ids) == 1 for ids in by_group.values()), "The episodes of a group must share one prompt.")
    seeds = [int(s) for s in info["episode_seed"]]
    _law(len(set(seeds)) == env.num_envs, "`info['episode_seed']` must differ between episodes.")


def _check_seeding(env: VectorEnv, obs: dict[str, Any], seed: int) -> None:
    again, _ = env.reset(seed=seed)
    _law(_same(obs, again), "`reset` with the same seed must give the same observation, bit for bit.")
    other, _ = env.reset(seed=seed + 1)
    _law(not _same(obs, other), "`reset` with another seed must give another observation.")


def _check_keyed_noise(env: VectorEnv, seed: int) -> None:
    """An episode must begin alike wherever it stands in the batch."""
    _, info = env.reset(seed=seed, options={"group_size": 1})
    prompts, offsets = list(info["prompt"]), list(range(env.num_envs))
    straight, info = env.reset(seed=seed, options={"prompts": prompts, "sample_offset": offsets})
    order = np.arange(env.num_envs)[::-1].copy()
    turned, turned_info = env.reset(
        seed=seed,
        options={"prompts": [prompts[i] for i in order], "sample_offset": [offsets[i] for i in order]},
    )
    _law(
        _same({k: v[order] for k, v in straight.items()}, turned)
        and np.array_equal(info["episode_seed"][order], turned_info["episode_seed"]),
        "Noise must be keyed by (seed, prompt, sample): an episode must not depend on its place in the batch.",
    )


def _check_options(env: VectorEnv) -> None:
    size = env.unwrapped.group_size
    try:
        env.reset(options={"no_such_option": 1})
    except ConfigError:
        env.reset(options={"group_size": size})
        return
    raise ContractError("`reset` must refuse unknown options with ConfigError.")


def _check_end(env: VectorEnv, act: Act) -> None:
    if env.metadata["autoreset_mode"] is AutoresetMode.DISABLED:
        try:
            env.step(env.action_space.sample())
        except ResetNeeded:
            return
        raise ContractError("Stepping a finished batch in mode DISABLED must raise ResetNeeded.")
    obs, rewards, terminated, truncated, info = env.step(env.action_space.sample())
    _law(
        not bool((terminated | truncated).any()) and not bool((rewards != 0).any()),
        "In mode NEXT_STEP the step after the end must only reset: no reward, no end.",
    )
    _law("samples" not in info, "The step that resets must not bring samples.")
    _check_observation(env, obs)


def _check_snapshots(env: VectorEnv, act: Act, seed: int) -> None:
    obs, _ = env.reset(seed=seed)
    obs, *_ = env.step(act(obs))
    snapshot = env.unwrapped.snapshot()
    rest = _play(env, act, obs)
    back, _ = env.unwrapped.restore(snapshot)
    _law(_same(obs, back), "`restore` must bring back the observation of the snapshot.")
    _law(_same(rest, _play(env, act, back)), "After `restore` the episodes must go on as they did.")
    env.unwrapped.restore(snapshot)
    forked, info = env.unwrapped.fork([0] * env.num_envs)
    _law(
        all(_same(_rows(forked, [0]), _rows(forked, [i])) for i in range(env.num_envs)),
        "`fork` must let every heir start from its ancestor's observation.",
    )
    _law(
        len(set(info["episode_seed"].tolist())) == env.num_envs,
        "Heirs of one episode must differ in their noise.",
    )
    env.reset(seed=seed)


def _play(env: VectorEnv, act: Act, obs: dict[str, Any]) -> dict[str, Any]:
    """Go on from `obs` to the end of all episodes; what happened, as arrays."""
    done = np.zeros(env.num_envs, dtype=bool)
    trace: dict[str, Any] = {}
    for step in range(MAX_STEPS):
        obs, rewards, terminated, truncated, info = env.step(act(obs))
        _check_observation(env, obs)
        for name, value in (("rewards", rewards), ("terminated", terminated), ("truncated", truncated)):
            _law(tuple(value.shape) == (env.num_envs,), f"`{name}` must have shape ({env.num_envs},).")
        ended = _numpy(terminated) | _numpy(truncated)
        _law(
            not (_numpy(terminated) & _numpy(truncated)).any(),
            "An episode must not terminate and truncate at once.",
        )
        new = ended & ~done
        if new.any():
            samples = info.get("samples")
            _law(
                samples is not None and all(samples[i] is not None for i in np.flatnonzero(new)),
                "`info['samples']` must hold the sample of every episode that has just finished.",
            )
        trace[f"reward{step}"], trace[f"latent{step}"] = _numpy(rewards), _numpy(next(iter(obs.values())))
        done |= ended
        if done.all():
            return trace
    raise ContractError(f"Episodes must end, got none of {MAX_STEPS} steps that ended them all.")


def _default_act(env: VectorEnv) -> Act:
    if isinstance(env.single_action_space, spaces.Box):
        return lambda obs: obs["latent"] * 0.9
    rng = np.random.default_rng(0)
    space = env.single_action_space

    def draw(obs: dict[str, Any]) -> Any:
        return rng.integers(space.n, size=env.num_envs)

    return draw


def _rows(obs: dict[str, Any], index: list[int]) -> dict[str, Any]:
    return {name: value[index] for name, value in obs.items()}


def _numpy(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.asarray(value)


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(_numpy(one[k]), _numpy(other[k]), equal_nan=_numpy(one[k]).dtype.kind == "f")
        for k in one
    )
