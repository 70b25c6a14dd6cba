"""The laws of what `info` says, and of pickles and copies."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from unirl_env.arguments.indices import as_numpy
from unirl_env.envs.contract import env_attr
from unirl_env.envs.contract.comparing import Act, digest, ended, law, like, seeds

PLAIN = ("group", "prompt", "prompt_id", "episode_seed")
OBJECTS = ("group", "prompt", "episode_seed")
STEPS = 3
"""How far a copy is followed."""


def check_info(env: VectorEnv, info: dict[str, Any], due: Sequence[int] = ()) -> None:
    """Compare an `info` with what it promises.

    Args:
        env: Whose.
        info: Of a reset or a step.
        due: The rows whose samples it must bring.

    Raises:
        ContractError: With the law that was broken.
    """
    objects = env_attr(env, "info_objects")
    for name in OBJECTS if objects else PLAIN:
        law(name in info, f"`info` must have {name!r}, got {sorted(info)}.")
        law(len(info[name]) == env.num_envs, f"`info[{name!r}]` must have one entry per episode.")
    if not objects:
        _check_plain(info, env.num_envs, "info")
    brought = as_numpy(info.get("_samples" if objects else "_sample", np.zeros(env.num_envs, dtype=bool)))
    law(
        bool(brought[list(due)].all()), "`info` must hold the sample of every episode that has just finished."
    )
    prompts = env_attr(env, "playing")
    law(len(prompts) == env.num_envs, f"`playing` must hold {env.num_envs} prompts, got {len(prompts)}.")
    by_group: dict[int, set[str]] = {}
    for group, prompt in zip(info["group"], prompts, strict=True):
        by_group.setdefault(int(group), set()).add(prompt.id)
    law(all(len(ids) == 1 for ids in by_group.values()), "The episodes of a group must share one prompt.")
    law(len(set(seeds(info))) == env.num_envs, "`info['episode_seed']` must differ between episodes.")


def check_copies(env: VectorEnv, act: Act, seed: int) -> None:
    """Pickle and copy the environment in the middle of its episodes, and go on with all three.

    Raises:
        ContractError: With the law that was broken.
    """
    obs, _ = env.reset(seed=seed)
    actions = act(obs)
    obs, _, terminated, truncated, _ = env.step(actions)
    over = ended(terminated, truncated)
    # Tensors may be live buffers, which the original changes.
    obs = like(obs, {name: as_numpy(value).copy() for name, value in obs.items()})
    # By the pickler that Ray and Gymnasium send environments with; it takes classes that no module names.
    ways = (("pickled", lambda: pickle.loads(_sent(env))), ("deep-copied", lambda: copy.deepcopy(env)))
    twins: dict[str, VectorEnv] = {}
    for way, make in ways:
        try:
            twins[way] = make()
        except Exception as error:
            law(False, f"An environment must be {way} at any moment, got {type(error).__name__}: {error}.")
    expected = _trace(env, obs, over, act, actions)
    for way, twin in twins.items():
        law(
            _trace(twin, obs, over, act, actions) == expected,
            f"An environment that was {way} must go on, bit for bit, as the original does.",
        )
        twin.close()


def _sent(env: VectorEnv) -> bytes:
    import cloudpickle

    return cloudpickle.dumps(env)


def _trace(
    env: VectorEnv,
    obs: dict[str, Any],
    over: np.ndarray,
    act: Act,
    actions: Any,
) -> list[int]:
    """What the next steps bring, as a number each; `actions` begin episodes anew, where they mean nothing."""
    trace: list[int] = []
    disabled = env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    for _ in range(STEPS):
        if disabled and over.all():
            obs, info = env.reset()
            rewards = terminated = truncated = np.zeros(env.num_envs, dtype=bool)
        else:
            actions = actions if over.all() else act(obs)
            obs, rewards, terminated, truncated, info = env.step(actions)
        over = ended(terminated, truncated)
        trace.append(digest({**obs, "rewards": rewards, "terminated": terminated}, info))
    return trace


def _check_plain(info: Mapping[str, Any], count: int, where: str) -> None:
    """Arrays, tensors and texts with their masks, and mappings of them; nothing unequal to itself."""
    for name, value in info.items():
        place = f"{where}[{name!r}]"
        if isinstance(value, Mapping):
            _check_plain(value, count, place)
        else:
            law(
                isinstance(value, np.ndarray | torch.Tensor),
                f"`{place}` must be an array, a text or a mapping of them, got {type(value).__name__}; "
                "objects are for `info_objects=True`.",
            )
            law(len(value) == count, f"`{place}` must have one entry per episode, got {len(value)}.")
            _check_entries(as_numpy(value), place)
        masked = name.startswith("_") or f"_{name}" in info
        law(masked, f"`{place}` must have its mask `_{name}` beside it.")


def _check_entries(array: np.ndarray, place: str) -> None:
    if array.dtype == object:
        odd = {type(one).__name__ for one in array if not isinstance(one, str | np.ndarray | None)}
        law(not odd, f"`{place}` must hold texts, got {sorted(odd)}; objects are for `info_objects=True`.")
    else:
        nan = array.dtype.kind == "f" and bool(np.isnan(array).any())
        law(not nan, f"`{place}` must leave out by its mask what does not apply, got NaN.")
