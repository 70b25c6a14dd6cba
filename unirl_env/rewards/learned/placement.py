"""Where a scorer's network computes, in which precision, and where its weights come from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unirl_env.arguments.values import require
from unirl_env.errors import ConfigError, ModelNotFound
from unirl_env.rewards.inputs import blocks_of, check_blocks, in_blocks

DTYPES = ("float32", "float16", "bfloat16")


class Placement:
    """Where a network computes, in which precision, and how much at once.

    Args:
        device: `"auto"` is a GPU if there is one.
        dtype: `"float32"`, `"float16"` or `"bfloat16"`, of the weights.
        batch_size: The most pictures, texts or pairs that go through the network at once.
        rows_per_forward: Always exactly so many, so that a score is bitwise the same in any company; see
            `unirl_env.rewards.inputs.in_blocks`.

    Raises:
        ConfigError: If a setting is out of range.
    """

    def __init__(
        self,
        *,
        device: str | torch.device = "cpu",
        dtype: str = "float32",
        batch_size: int = 64,
        rows_per_forward: int | None = None,
    ):
        self.dtype = dtype_of(dtype)
        check_blocks(batch_size, rows_per_forward)
        self.device = device_of(device)
        self.batch_size, self.rows_per_forward = batch_size, rows_per_forward

    def blocks(self, rows: Sequence[Any]) -> Iterator[tuple[list[Any], int]]:
        """As many rows at a time as fit, and how many of these count; see `inputs.blocks_of`."""
        return blocks_of(rows, self.batch_size, self.rows_per_forward)

    def in_blocks(self, compute: Callable[[Tensor], Tensor], rows: Sequence[Tensor]) -> Tensor:
        """`compute` over `rows`, as many at a time as fit."""
        return in_blocks(compute, rows, self.batch_size, self.rows_per_forward)


def device_of(device: str | torch.device) -> torch.device:
    """The device that an option means: `"auto"` is a GPU if there is one.

    Raises:
        ConfigError: If there is no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"`device` must be 'auto', 'cpu' or a GPU such as 'cuda:0', got {device!r}."
        ) from error


def dtype_of(dtype: str) -> torch.dtype:
    """The dtype of a network's weights.

    Raises:
        ConfigError: If it is none of `"float32"`, `"float16"` and `"bfloat16"`.
    """
    require("dtype", dtype, dtype in DTYPES, f"one of {list(DTYPES)}")
    return getattr(torch, dtype)


def hub_file(repo: str, file: str, *, asker: str, option: str) -> str:
    """The path of one file of a repository of the hub, downloaded if it is not there yet.

    Args:
        repo: `"owner/name"`.
        file: Its name in the repository.
        asker: The scorer, for the message.
        option: The option by which a local copy could be given, for the message.

    Raises:
        ModelNotFound: If it cannot be had.
    """
    try:
        from huggingface_hub import hf_hub_download

        return hf_hub_download(repo, file)
    except Exception as error:
        raise not_found(
            asker, f"{file!r} of {repo!r}", error, f"`{option}` with the path of a copy"
        ) from error


def load_tensors(path: str | os.PathLike[str], *, asker: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint on the CPU; nothing in the file is executed.

    Args:
        path: A safetensors file, or what `torch.save` wrote of a state dict, or of `{"state_dict": ...}`.
        asker: The scorer, for the message.

    Raises:
        ModelNotFound: If the file is missing, damaged, or holds anything else.
    """
    try:
        if os.fspath(path).endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
        found = found.get("state_dict", found)
        if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
            raise TypeError("its values are no tensors")
        return dict(found)
    except Exception as error:
        raise not_found(asker, repr(os.fspath(path)), error, "another copy of the file") from error


def not_found(asker: str, what: str, error: Exception, remedy: str) -> ModelNotFound:
    """The error of a scorer whose network cannot be loaded."""
    # Of a list of a hundred missing tensors, the beginning says enough.
    said = " ".join(str(error).split())
    said = said if len(said) <= 300 else f"{said[:300]} ..."
    return ModelNotFound(
        f"`{asker}` must find {what}, got {type(error).__name__}: {said}; try {remedy}, or the reward "
        f"`shapes`, which needs no download."
    )
