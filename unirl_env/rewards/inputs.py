"""What scorers look at, checked, and what goes through their networks, in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unirl_env.errors import ConfigError, ContractError
from unirl_env.types import Sample

PIXELS = {"image": " [3, H, W]", "pictures": " [K, 3, H, W]", "video": " [F, 3, H, W]"}
"""Fields of a sample that hold pixels, and their shapes."""
OVERSHOOT = 2.0
"""So far beyond black and white, pixels count as them; farther away, they have another scale."""


def picture_of(sample: Sample, name: str) -> Tensor:
    """The picture `[3, H, W]` of a sample.

    Args:
        sample: What is judged.
        name: The scorer that asks, for the message.

    Raises:
        ContractError: If there is none, it is no tensor, or its pixels are no floats in [0, 1]; those that
            are not finite are the scorer's affair.
    """
    return _pixels_of(sample, "image", 3, name)


def video_of(sample: Sample, name: str) -> Tensor:
    """The video `[F, 3, H, W]` of a sample, as floats in [0, 1].

    Args:
        sample: What is judged.
        name: The scorer that asks, for the message.

    Raises:
        ContractError: If there is none, it is no tensor or has no frames, or its pixels are neither uint8 nor
            floats in [0, 1].
    """
    video = tensor_of(sample, "video", name)
    if video is not None and video.dtype == torch.uint8:
        sample = replace(sample, video=video.float() / 255)
    return _pixels_of(sample, "video", 4, name)


def tensor_of(sample: Sample, field: str, name: str) -> Tensor | None:
    """A field of a sample that holds a tensor, None where it is empty.

    Args:
        sample: What is judged.
        field: Of `Sample`: `image`, `pictures`, `video`, `latent` or `tokens`.
        name: The scorer that asks, for the message.

    Raises:
        ContractError: If it holds anything else, such as an array or a list.
    """
    found = getattr(sample, field)
    if found is None or isinstance(found, Tensor):
        return found
    shape = getattr(found, "shape", None)
    got = type(found).__name__ if shape is None else f"{type(found).__name__} {list(shape)}"
    remedy = f"torch.as_tensor({field})"
    if field in PIXELS and shape is not None and len(shape) >= 3 and shape[-1] == 3 != shape[-3]:
        remedy += ".movedim(-1, -3)"
    raise ContractError(
        f"`Sample.{field}` must be a tensor{PIXELS.get(field, '')} for the reward `{name}`, got "
        f"{got}; try `{remedy}`."
    )


def require_pixels(pixels: Tensor, field: str, name: str) -> None:
    """Refuse pixels of another scale, such as bytes from 0 to 255, which a scorer would cut off to white.

    Args:
        pixels: Of any shape; NaN and infinity are let through.
        field: The field of `Sample` that holds them.
        name: The scorer that asks.

    Raises:
        ContractError: Naming both.
    """
    if not pixels.is_floating_point():
        raise ContractError(
            f"`Sample.{field}` must be floating point in [0, 1] for the reward `{name}`, got {pixels.dtype}; "
            f"try `{field}.float() / 255` for bytes."
        )
    low, high = (float(bound) for bound in torch.aminmax(pixels.detach()))
    if -OVERSHOOT <= low and high <= 1 + OVERSHOOT:
        return
    finite = pixels[pixels.isfinite()]
    low, high = (float(bound) for bound in torch.aminmax(finite)) if finite.numel() else (0.0, 1.0)
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        raise ContractError(
            f"`Sample.{field}` must lie in [0, 1] for the reward `{name}`, got values from {low:g} to "
            f"{high:g}; try to divide by 255 what comes from bytes."
        )


def check_blocks(batch_size: int, rows_per_forward: int | None) -> None:
    """Refuse sizes that are not positive.

    Raises:
        ConfigError: Naming the option.
    """
    for name, value in (("batch_size", batch_size), ("rows_per_forward", rows_per_forward)):
        if value is not None and value < 1:
            raise ConfigError(f"`{name}` must be at least 1, got {value}.")


def blocks_of(
    rows: Sequence[Any], batch_size: int, rows_per_forward: int | None = None
) -> Iterator[tuple[list[Any], int]]:
    """As many rows at a time as fit, and how many of these count.

    Args:
        rows: What goes through a network.
        batch_size: The most rows of a block.
        rows_per_forward: Every block has exactly this many rows, the last of them repeated where there are
            fewer.
    """
    size = rows_per_forward or batch_size
    for start in range(0, len(rows), size):
        block = list(rows[start : start + size])
        yield block + block[-1:] * (size - len(block) if rows_per_forward else 0), len(block)


def in_blocks(
    compute: Callable[[Tensor], Tensor],
    rows: Sequence[Tensor],
    batch_size: int,
    rows_per_forward: int | None = None,
) -> Tensor:
    """`compute` over `rows`, as many at a time as fit.

    Args:
        compute: `[n, ...]` to `[n, ...]`, each row by itself.
        rows: Tensors of one shape, at least one.
        batch_size: The most rows of one call.
        rows_per_forward: Every call has exactly this many rows, the last of them repeated where there are
            fewer: then a row's result is bitwise the same in any company, also in a service that merges
            requests. With 1 that holds by construction; with more, where the machine's kernels treat all rows
            of a call alike, which very small networks may find they do not. None takes blocks as they come,
            whose size changes last bits on many machines.

    Returns:
        `[len(rows), ...]`.
    """
    blocks = blocks_of(rows, batch_size, rows_per_forward)
    return torch.cat([compute(torch.stack(block))[:count] for block, count in blocks])


def _pixels_of(sample: Sample, field: str, rank: int, name: str) -> Tensor:
    pixels = tensor_of(sample, field, name)
    if pixels is None or pixels.ndim != rank or pixels.shape[-3] != 3 or not pixels.numel():
        got = None if pixels is None else list(pixels.shape)
        raise ContractError(f"`Sample.{field}` must be{PIXELS[field]} for the reward `{name}`, got {got}.")
    require_pixels(pixels, field, name)
    return pixels
