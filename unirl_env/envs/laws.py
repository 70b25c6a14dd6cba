"""What the checks of the contract share: laws, and comparisons of observations bit by bit."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from unirl_env.errors import ContractError

__all__ = ["all_alike", "as_array", "digest", "due_samples", "law", "same", "seeds", "some_rows"]


def law(kept: bool, text: str) -> None:
    """Raise ContractError with `text` unless it is kept."""
    if not kept:
        raise ContractError(text)


def due_samples(env: VectorEnv, ended: np.ndarray, new: np.ndarray) -> list[int]:
    """The rows whose samples a step must bring.

    Args:
        env: Its metadata says with `samples_together` that the samples of a batch come at its end.
        ended: `[B]` bool, the episodes that have ended.
        new: `[B]` bool, those of them that ended with this step.
    """
    if not env.metadata.get("samples_together"):
        return np.flatnonzero(new).tolist()
    return list(range(env.num_envs)) if ended.all() else []


def seeds(info: dict[str, Any]) -> list[int]:
    """The seeds of the episodes, as integers."""
    return [int(seed) for seed in info["episode_seed"]]


def some_rows(obs: dict[str, Any], index: list[int]) -> dict[str, Any]:
    """Chosen rows of an observation."""
    return {name: value[index] for name, value in obs.items()}


def all_alike(obs: dict[str, Any]) -> bool:
    """Whether all rows of an observation are equal."""
    return all(same(some_rows(obs, [0]), some_rows(obs, [i])) for i in range(len(next(iter(obs.values())))))


def as_array(value: Any) -> np.ndarray:
    """An array or a tensor of any device and precision as a numpy array."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.asarray(value)


def _ids(info: dict[str, Any]) -> np.ndarray:
    """The ids of the prompts, from plain data or from objects, as an array of text."""
    ids = info["prompt_id"] if "prompt_id" in info else [prompt.id for prompt in info["prompt"]]
    return np.array([str(each) for each in ids])


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two observations are equal in every bit."""
    return digest(one) == digest(other)


def digest(values: dict[str, Any], info: dict[str, Any] | None = None) -> int:
    """A number of the bits of `values`, and of who plays."""
    told = [] if info is None else [info["episode_seed"], info["group"], _ids(info)]
    number = 0
    for value in [*(values[name] for name in sorted(values)), *told]:
        array = np.ascontiguousarray(as_array(value))
        number = zlib.crc32(f"{array.dtype}{array.shape}".encode() + array.tobytes(), number)
    return number
