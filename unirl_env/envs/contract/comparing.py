"""What the laws share: observations compared bit by bit, and batches played again."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from unirl_env.arguments.indices import as_numpy
from unirl_env.envs.contract import env_attr
from unirl_env.errors import ContractError

Act = Callable[[dict[str, Any]], Any]
"""`act(obs) -> actions`, a function of what is seen."""
GROWING = (("tokens", "length"), ("is_action", "length"), ("image_tokens", "image_length"))
"""Entries that mean nothing beyond a length."""


def law(kept: bool, text: str) -> None:
    """Raise ContractError with `text` unless it is kept."""
    if not kept:
        raise ContractError(text)


def due_samples(env: VectorEnv, over: np.ndarray, new: np.ndarray) -> list[int]:
    """The rows whose samples a step must bring.

    Args:
        env: Its metadata says with `samples_together` that the samples of a batch come at its end.
        over: `[B]` bool, the episodes that have ended.
        new: `[B]` bool, those of them that ended with this step.
    """
    if not env.metadata.get("samples_together"):
        return np.flatnonzero(new).tolist()
    return list(range(env.num_envs)) if over.all() else []


def ended(terminated: Any, truncated: Any) -> np.ndarray:
    """`[B]` bool, which episodes a step has ended."""
    return as_numpy(terminated) | as_numpy(truncated)


def seeds(info: dict[str, Any]) -> list[int]:
    """The seeds of the episodes, as integers."""
    return [int(seed) for seed in info["episode_seed"]]


def some_rows(obs: dict[str, Any], index: Any) -> dict[str, Any]:
    """Chosen rows of an observation; one row, without the batch, for a number."""
    return {name: value[index] for name, value in obs.items()}


def all_alike(obs: dict[str, Any]) -> bool:
    """Whether all rows of an observation are equal."""
    return all(same(some_rows(obs, [0]), some_rows(obs, [i])) for i in range(len(next(iter(obs.values())))))


def copied(obs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """An observation that no later step changes: tensors may be live buffers; beyond a text's end is 0."""
    copies = {name: as_numpy(value).copy() for name, value in obs.items()}
    for name, length in GROWING:
        if name in copies and length in copies:
            copies[name][np.arange(copies[name].shape[1]) >= copies[length][:, None]] = 0
    return copies


def like(obs: Mapping[str, Any], actions: Any) -> Any:
    """Actions, in mappings and tuples too, in the array type of an observation and on its device."""
    if isinstance(actions, Mapping):
        return {name: like(obs, part) for name, part in actions.items()}
    if isinstance(actions, tuple):
        return tuple(like(obs, part) for part in actions)
    seen = next(iter(obs.values()))
    tensors = isinstance(seen, torch.Tensor) and isinstance(actions, np.ndarray)
    return torch.from_numpy(actions).to(seen.device) if tensors else actions


def present(env: VectorEnv) -> dict[str, Any]:
    """The present observation."""
    return env.unwrapped.restore(env.unwrapped.snapshot())[0]


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two observations are equal in every bit."""
    return digest(one) == digest(other)


def digest(values: dict[str, Any], info: dict[str, Any] | None = None) -> int:
    """A number of the bits of `values`, and of who plays."""
    who = [] if info is None else [info["episode_seed"], info["group"], _ids(info)]
    number = 0
    for value in [*(values[name] for name in sorted(values)), *who]:
        array = np.ascontiguousarray(as_numpy(value))
        number = zlib.crc32(f"{array.dtype}{array.shape}".encode() + array.tobytes(), number)
    return number


def default_act(env: VectorEnv) -> Act:
    """The environment's own `example_act`; without one, samples of the action space, keyed by what is seen.

    Raises:
        ContractError: If the `example_act` is no function.
    """
    own = env_attr(env, "example_act")
    if own is not None and not callable(own):
        raise ContractError(f"`example_act` must be a function of an observation, got {own!r}.")
    # A wrapper that changes actions knows none of its own.
    if own is not None and env.action_space == env.unwrapped.action_space:
        return own

    def act(obs: dict[str, Any]) -> Any:
        env.action_space.seed(digest(obs))
        return like(obs, env.action_space.sample())

    return act


class Step(NamedTuple):
    """What a step of a batch brought.

    Attributes:
        actions: What was done, as copies.
        obs: What is seen now; live where the environment's tensors are.
        rewards: `[B]`.
        over: `[B]` bool, the episodes that have ended, now or before.
        cut: `[B]` bool, those of them that were truncated.
        rows: The rows that were not done when it was taken.
        due: The rows whose samples it must bring.
        info: Of the step.
    """

    actions: Any
    obs: dict[str, Any]
    rewards: Any
    over: np.ndarray
    cut: np.ndarray
    rows: np.ndarray
    due: list[int]
    info: dict[str, Any]


def played(
    env: VectorEnv, act: Act, obs: dict[str, Any], max_steps: int, done: np.ndarray | None = None
) -> Iterator[Step]:
    """Go on from `obs`, step by step, until all are done that are not so yet.

    Raises:
        ContractError: If rewards or flags are none that a batch can have.
    """
    done = np.zeros(env.num_envs, dtype=bool) if done is None else done.copy()
    for _ in range(max_steps):
        if done.all():
            return
        actions = act(obs)
        taken = _map(actions, lambda part: as_numpy(part).copy())
        obs, rewards, terminated, truncated, info = env.step(actions)
        outcome = {"rewards": rewards, "terminated": terminated, "truncated": truncated}
        for name, value in outcome.items():
            law(tuple(value.shape) == (env.num_envs,), f"`{name}` must have shape ({env.num_envs},).")
        stop, cut = as_numpy(terminated), as_numpy(truncated)
        law(stop.dtype == cut.dtype == bool, "`terminated` and `truncated` must be bool.")
        law(not (stop & cut).any(), "An episode must not terminate and truncate at once.")
        over, rows = stop | cut, np.flatnonzero(~done)
        yield Step(taken, obs, rewards, over, cut, rows, due_samples(env, over, over & ~done), info)
        done |= over


def check_place(env: VectorEnv, act: Act, seed: int, max_steps: int) -> None:
    """What an episode sees must not depend on its place in the batch, nor on the others, to its end.

    Raises:
        ContractError: If it does.
    """
    env.reset(seed=seed, options={"group_size": 1})
    prompts, offsets = list(env_attr(env, "playing")), list(range(env.num_envs))
    straight = {"group_size": 1, "prompts": prompts, "sample_offset": offsets}
    turned = {"group_size": 1, "prompts": prompts[::-1], "sample_offset": offsets[::-1]}
    others = {**straight, "sample_offset": [0, *(env.num_envs + offset for offset in offsets[1:])]}
    obs, _ = env.reset(seed=seed, options=straight)
    history = [
        (step.actions, copied(step.obs), step.over, step.rows) for step in played(env, act, obs, max_steps)
    ]
    # All in another order; and the first one among others.
    for options, places in ((turned, {row: offsets[-1 - row] for row in offsets}), (others, {0: 0})):
        obs, _ = env.reset(seed=seed, options=options)
        for actions, seen, seen_over, playing in history:
            rows = [row for row in places if row in playing]
            if not rows:
                break
            step = -1 if options is turned else 1
            taken = _map(actions, partial(np.take, indices=offsets[::step], axis=0))
            obs, _, terminated, truncated, _ = env.step(like(obs, taken))
            now, now_over = copied(obs), ended(terminated, truncated)
            law(
                all(
                    same(some_rows(seen, [row]), some_rows(now, [places[row]]))
                    and bool(seen_over[row]) == bool(now_over[places[row]])
                    for row in rows
                ),
                "An episode must not depend on its place in the batch, nor on the others.",
            )


def check_branches(
    env: VectorEnv,
    act: Act,
    obs: dict[str, Any],
    info: dict[str, Any],
    done: np.ndarray,
    max_steps: int,
    row: int = -1,
) -> None:
    """From where the episodes stand, some of them `done`: go back to a snapshot, and fork the one at `row`.

    Raises:
        ContractError: If they do not go on as they did, or copies do not begin where their original stands.
    """

    def rest(obs: dict[str, Any]) -> list[int]:
        # Without rewards: a wrapper that adds them up does not see what is restored beneath it.
        steps = played(env, act, obs, max_steps, done)
        return [digest({**step.obs, "over": step.over, "cut": step.cut}) for step in steps]

    before, snapshot = digest(obs, info), env.unwrapped.snapshot()
    went = rest(obs)
    back = env.unwrapped.restore(snapshot)
    # Tensors may be live: playing on would change what is compared below.
    original = {name: as_numpy(value)[row][None].copy() for name, value in back[0].items()}
    law(before == digest(*back), "`restore` must bring back the observation and info of the snapshot.")
    law(went == rest(back[0]), "After `restore` the episodes must go on as they did.")
    env.unwrapped.restore(snapshot)
    itself = env.unwrapped.fork(list(range(env.num_envs)))
    law(before == digest(*itself), "`fork` to every episode itself must change nothing.")
    env.unwrapped.restore(snapshot)
    forked, who = env.unwrapped.fork([row % env.num_envs] * env.num_envs)
    law(
        all_alike(forked) and same(some_rows(forked, [0]), original),
        "`fork` must let every copy start from its original's observation.",
    )
    law(seeds(who)[0] == seeds(back[1])[row], "The first copy of an episode must keep its noise.")
    law(len(set(seeds(who))) == env.num_envs, "Copies of one episode must differ in their noise.")
    for _ in () if done[row] else played(env, act, forked, max_steps):
        pass


def _map(actions: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(actions, Mapping):
        return {name: change(part) for name, part in actions.items()}
    return change(actions)


def _ids(info: dict[str, Any]) -> np.ndarray:
    """The ids of the prompts, from plain data or from objects, as an array of text."""
    ids = info["prompt_id"] if "prompt_id" in info else [prompt.id for prompt in info["prompt"]]
    return np.array([str(each) for each in ids])
