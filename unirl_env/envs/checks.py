"""The judge of the contract: tests any generative vector environment, ours or a user's."""

from __future__ import annotations

import zlib
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
INFO = ("group", "prompt", "episode_seed")


def check_vector_env(
    env: VectorEnv, act: Act | None = None, *, seed: int = 0, max_steps: int = 100_000
) -> None:
    """Play a few episodes and compare every promise of the contract with what happens.

    Args:
        env: A generative vector environment, wrapped or not; it is left freshly reset. Laws about groups and
            heirs need `num_envs` of at least 2 to bite.
        act: `act(obs) -> actions`, deterministic; by default a latent is pulled towards zero, and other
            actions are drawn from the action space, keyed by the observation.
        seed: Key of the episodes.
        max_steps: Episodes that are longer count as endless.

    Raises:
        ContractError: With the law that was broken.
    """
    act = act or _default_act(env)
    _check_declarations(env)
    _check_order_guard(env)
    obs, info = env.reset(seed=seed)
    _check_observation(env, obs)
    _check_info(env, info)
    _check_seeding(env, obs, info, seed)
    _check_keyed_noise(env, seed)
    _check_options(env, info, seed)
    first = _play(env, act, env.reset(seed=seed)[0], max_steps)
    _law(
        first == _play(env, act, env.reset(seed=seed)[0], max_steps),
        "The same seed and actions must give the same episodes.",
    )
    _check_end(env)
    _check_snapshots(env, act, seed, max_steps)
    _check_ownership(env, act, seed)
    env.reset(seed=seed)


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
    kinds = {isinstance(value, torch.Tensor) for value in obs.values()}
    _law(len(kinds) == 1, "Observations must be all arrays or all tensors, got both.")
    for name, space in expected.items():
        value, shape = obs[name], (env.num_envs, *space.shape)
        got = tuple(value.shape)
        _law(got == shape, f"`obs[{name!r}]` must have shape {shape}, got {got}.")
        array = _numpy(value)
        floating = space.dtype.kind == "f"
        # Tensors may be half precision, and flags bool; arrays are what the space says.
        fits = (array.dtype.kind == "f") == floating if kinds == {True} else value.dtype == space.dtype
        _law(fits, f"`obs[{name!r}]` must have the dtype of its space, {space.dtype}, got {value.dtype}.")
        _law(not floating or bool(np.isfinite(array).all()), f"`obs[{name!r}]` must be finite.")
        inside = all(space.contains(np.asarray(row, dtype=space.dtype)) for row in array)
        _law(inside, f"`obs[{name!r}]` must lie in its space {space}.")


def _check_info(env: VectorEnv, info: dict[str, Any]) -> None:
    for name in INFO:
        _law(name in info, f"`info` must have {name!r}, got {sorted(info)}.")
        _law(len(info[name]) == env.num_envs, f"`info[{name!r}]` must have one entry per episode.")
    by_group: dict[int, set[str]] = {}
    for group, prompt in zip(info["group"], info["prompt"], strict=True):
        by_group.setdefault(int(group), set()).add(prompt.id)
    _law(all(len(ids) == 1 for ids in by_group.values()), "The episodes of a group must share one prompt.")
    seeds = {int(seed) for seed in info["episode_seed"]}
    _law(len(seeds) == env.num_envs, "`info['episode_seed']` must differ between episodes.")


def _check_seeding(env: VectorEnv, obs: dict[str, Any], info: dict[str, Any], seed: int) -> None:
    _law(
        _digest(obs, info) == _digest(*env.reset(seed=seed)),
        "`reset` with the same seed must give the same episodes, bit for bit.",
    )
    other, other_info = env.reset(seed=seed + 1)
    fresh = "latent" not in obs or not _same({"_": obs["latent"]}, {"_": other["latent"]})
    _law(
        fresh and not set(_seeds(info)) & set(_seeds(other_info)),
        "`reset` with another seed must give other episodes.",
    )
    _law(
        not set(_seeds(other_info)) & set(_seeds(env.reset()[1])),
        "`reset` without a seed must go on to new episodes.",
    )


def _check_keyed_noise(env: VectorEnv, seed: int) -> None:
    """An episode must begin alike wherever it stands in the batch."""
    _, info = env.reset(seed=seed, options={"group_size": 1})
    prompts, offsets = list(info["prompt"]), list(range(env.num_envs))
    options = {"group_size": 1, "prompts": prompts, "sample_offset": offsets}
    straight, info = env.reset(seed=seed, options=options)
    turned, turned_info = env.reset(
        seed=seed, options={"group_size": 1, "prompts": prompts[::-1], "sample_offset": offsets[::-1]}
    )
    _law(
        _same({name: _numpy(value)[::-1] for name, value in straight.items()}, turned)
        and _seeds(info)[::-1] == _seeds(turned_info),
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
    _check_info(env, one_group)
    _law(len(set(_numpy(one_group["group"]).tolist())) == 1, "`group_size` must be honoured by `reset`.")
    _law(_all_alike(alike), "With `same_noise` the episodes of a group must begin alike.")
    _law(
        _numpy(env.reset(seed=seed)[1]["group"]).tolist() == _numpy(info["group"]).tolist(),
        "The options of a `reset` must not outlive the next one.",
    )


def _check_end(env: VectorEnv) -> None:
    try:
        obs, rewards, terminated, truncated, info = env.step(env.action_space.sample())
    except ResetNeeded:
        disabled = env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
        _law(disabled, "In mode NEXT_STEP the step after the end must reset, not raise.")
        return
    _law(
        env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP,
        "Stepping a finished batch in mode DISABLED must raise gymnasium.error.ResetNeeded.",
    )
    ended = _numpy(terminated) | _numpy(truncated)
    _law(
        not ended.any() and not (_numpy(rewards) != 0).any(),
        "In mode NEXT_STEP the step after the end must only reset: no reward, no end.",
    )
    _law("samples" not in info, "The step that resets must not bring samples.")
    _check_observation(env, obs)
    _check_info(env, info)


def _check_ownership(env: VectorEnv, act: Act, seed: int) -> None:
    """Arrays belong to who receives them; tensors are shared, because copies would cost more than a step."""
    actions = act(env.reset(seed=seed)[0])
    obs, *_ = env.step(actions)
    if not all(isinstance(value, np.ndarray) for value in (actions, *obs.values())):
        return
    before = _digest(obs)
    for array in (actions, *obs.values()):
        array[...] = 0
    _law(
        before == _digest(env.unwrapped.restore(env.unwrapped.snapshot())[0]),
        "Actions and observations must be copies: an agent may write into its arrays.",
    )


def _check_snapshots(env: VectorEnv, act: Act, seed: int, max_steps: int) -> None:
    obs, _ = env.reset(seed=seed)
    obs, *_, info = env.step(act(obs))
    before = _digest(obs, info)
    snapshot = env.unwrapped.snapshot()
    # Without rewards: a wrapper that adds them up does not see what is restored beneath it.
    rest = _play(env, act, obs, max_steps, rewarded=False)
    back = env.unwrapped.restore(snapshot)
    _law(before == _digest(*back), "`restore` must bring back the observation and info of the snapshot.")
    again = _play(env, act, back[0], max_steps, rewarded=False)
    _law(rest == again, "After `restore` the episodes must go on as they did.")
    env.unwrapped.restore(snapshot)
    same = env.unwrapped.fork(list(range(env.num_envs)))
    _law(before == _digest(*same), "`fork` to every episode itself must change nothing.")
    env.unwrapped.restore(snapshot)
    forked, heirs = env.unwrapped.fork([env.num_envs - 1] * env.num_envs)
    _law(
        _all_alike(forked) and _same(_rows(forked, [0]), _rows(back[0], [env.num_envs - 1])),
        "`fork` must let every heir start from its ancestor's observation.",
    )
    _law(_seeds(heirs)[0] == _seeds(back[1])[-1], "The first heir of an episode must keep its noise.")
    _law(len(set(_seeds(heirs))) == env.num_envs, "Heirs of one episode must differ in their noise.")


def _play(
    env: VectorEnv, act: Act, obs: dict[str, Any], max_steps: int, *, rewarded: bool = True
) -> list[int]:
    """Go on from `obs` to the end of all episodes; what happened, as one number per step."""
    done, trace = np.zeros(env.num_envs, dtype=bool), []
    for _ in range(max_steps):
        obs, rewards, terminated, truncated, info = env.step(act(obs))
        _check_observation(env, obs)
        outcome = {"rewards": rewards, "terminated": terminated, "truncated": truncated}
        for name, value in outcome.items():
            _law(tuple(value.shape) == (env.num_envs,), f"`{name}` must have shape ({env.num_envs},).")
        over, cut = _numpy(terminated), _numpy(truncated)
        _law(over.dtype == cut.dtype == bool, "`terminated` and `truncated` must be bool.")
        _law(not (over & cut).any(), "An episode must not terminate and truncate at once.")
        new = (over | cut) & ~done
        samples = info.get("samples") or [None] * env.num_envs
        _law(
            all(samples[i] is not None for i in np.flatnonzero(new)),
            "`info['samples']` must hold the sample of every episode that has just finished.",
        )
        trace.append(_digest({**obs, **outcome, "rewards": rewards if rewarded else 0}))
        done |= new
        if done.all():
            return trace
    raise ContractError(f"Episodes must end, got {int((~done).sum())} that did not in {max_steps} steps.")


def _default_act(env: VectorEnv) -> Act:
    def act(obs: dict[str, Any]) -> Any:
        if "latent" in obs and tuple(obs["latent"].shape) == env.action_space.shape:
            return obs["latent"] * 0.9
        env.action_space.seed(_digest(obs))
        return env.action_space.sample()

    return act


def _seeds(info: dict[str, Any]) -> list[int]:
    return [int(seed) for seed in info["episode_seed"]]


def _rows(obs: dict[str, Any], index: list[int]) -> dict[str, Any]:
    return {name: value[index] for name, value in obs.items()}


def _all_alike(obs: dict[str, Any]) -> bool:
    return all(_same(_rows(obs, [0]), _rows(obs, [i])) for i in range(len(next(iter(obs.values())))))


def _numpy(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.asarray(value)


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return _digest(one) == _digest(other)


def _digest(values: dict[str, Any], info: dict[str, Any] | None = None) -> int:
    """A number of the bits of `values`, and of who plays."""
    told = [] if info is None else [info["episode_seed"], info["group"], [p.id for p in info["prompt"]]]
    digest = 0
    for value in [*(values[name] for name in sorted(values)), *told]:
        array = np.ascontiguousarray(_numpy(value))
        digest = zlib.crc32(f"{array.dtype}{array.shape}".encode() + array.tobytes(), digest)
    return digest
