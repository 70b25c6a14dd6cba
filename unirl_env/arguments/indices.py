"""Which rows of a batch are meant: whole numbers for places, or truth values for a mask.

A tensor of `uint8` is an index here, whatever PyTorch makes of it where it indexes by it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from unirl_env.arguments.values import as_whole
from unirl_env.errors import ShapeError, UnirlError

SHOWN = 8


def as_array(value: Any) -> np.ndarray | None:
    """`value` as a numpy array, if it is a dense array or tensor of any device; None for all else.

    A masked array is none: numpy would drop its mask without a word.
    """
    if isinstance(value, np.ma.MaskedArray):
        return None
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.device.type == "meta" or value.is_quantized:
            return None
        value = value.detach().cpu().resolve_conj().resolve_neg()
        found: np.ndarray = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        return found
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    if hasattr(value, "__array__") and not isinstance(value, list | tuple | range):
        return np.asarray(value)
    return None


def as_numpy(value: Any) -> np.ndarray:
    """An array or a tensor of any device and precision as a numpy array; numpy's own view of all else."""
    array = as_array(value)
    return np.asarray(value) if array is None else array


def as_indices(
    name: str,
    value: Any,
    bound: int,
    *,
    count: int | None = None,
    empty: bool = False,
    error: type[UnirlError] = ShapeError,
) -> np.ndarray:
    """Places in `[0, bound)` as `[n]` int64.

    Args:
        name: What an error calls them.
        value: A list, tuple or range of whole numbers, or an array or tensor `[n]` of any integer type.
        bound: How many places there are.
        count: How many are wanted; any number if it is None.
        empty: Whether there may be none.
        error: The class of the error.

    Raises:
        UnirlError: Of the class `error`, if they are anything else: truth values, floats, negative, too
            large, too many or none.
    """
    places = _wholes(value)
    how_many = f"{count} whole numbers" if count is not None else "whole numbers"
    wrong = places is None or not (places or empty) or (count is not None and len(places) != count)
    if not wrong and places and not 0 <= min(places) <= max(places) < bound:
        raise error(f"`{name}` must lie in [0, {bound}), got {places[:SHOWN]}.")
    if wrong:
        raise error(
            f"`{name}` must be {how_many} in [0, {bound}), got {_shown(value)}; try a list of integers, or "
            "`numpy.flatnonzero(mask)` of a mask."
        )
    return np.array(places, dtype=np.int64)


def as_mask(name: str, value: Any, count: int, *, error: type[UnirlError] = ShapeError) -> np.ndarray:
    """Truth values `[count]`, one for each place.

    Args:
        name: What an error calls them.
        value: A list or tuple of truth values, or an array or tensor `[count]` of them.
        count: How many places there are.
        error: The class of the error.

    Raises:
        UnirlError: Of the class `error`, if they are anything else: numbers, places, or another shape.
    """
    array = as_array(value)
    if array is None and isinstance(value, list | tuple):
        if all(isinstance(each, bool | np.bool_) for each in value):
            array = np.array(value, dtype=bool)
    if array is None or array.dtype != bool or array.shape != (count,):
        raise error(f"`{name}` must be bool [{count}], got {_shown(value)}.")
    return array


def places_or_mask(name: str, value: Any, count: int) -> Tensor:
    """Places `[b]`, of any integer type, or a mask `[count]`, as the places `[b]` int64 that either means.

    Args:
        name: What an error calls it.
        value: As for `as_indices`, but there may be none; or truth values, as for `as_mask`.
        count: How many places there are.

    Raises:
        ShapeError: If it is neither.
    """
    if str(getattr(value, "dtype", "")) in ("torch.bool", "bool"):
        return torch.from_numpy(np.flatnonzero(as_mask(name, value, count)))
    return torch.from_numpy(as_indices(name, value, count, empty=True))


def _wholes(value: Any) -> list[int] | None:
    """Whole numbers as Python's own; None if they are none, or not in one line."""
    array = as_array(value)
    if array is not None and array.dtype != object:
        return array.tolist() if array.ndim == 1 and array.dtype.kind in "iu" else None
    if array is not None:
        value = list(array) if array.ndim == 1 else None
    if not isinstance(value, list | tuple | range):
        return None
    places = [place for place in map(as_whole, value) if place is not None]
    return places if len(places) == len(value) else None


def _shown(value: Any) -> str:
    """What was given, in a few words."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is None or shape is None:
        return f"{value!r:.100}"
    array = as_array(value)
    few = "" if array is None else f": {array.reshape(-1)[:SHOWN].tolist()}"
    return f"{type(value).__name__} of {dtype} {list(shape)}{few}"
