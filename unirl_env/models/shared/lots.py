"""Forwards in lots of one size: they bound memory, and make a row's result independent of the batch's size.

Matrix libraries choose another order of summation for another number of rows, so a network's last bits change
with the size of its batch. In lots of one fixed size, the last one padded, they do not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["in_lots", "pictures_at_once"]

PIXELS_AT_ONCE = 128 * 128
"""In one forward: small pictures are faster together, and large ones fill a device by themselves."""


def in_lots(function: Callable[..., Tensor], *batches: Tensor, rows: int | None) -> Tensor:
    """`function(*batches)`, evaluated `rows` rows at a time.

    Args:
        function: Of tensors `[n, ...]`, to `[n, ...]`; row i must depend on row i alone.
        *batches: Tensors `[N, ...]`.
        rows: Size of a lot, the last one filled up with copies of its last row; None evaluates all at once.

    Returns:
        `[N, ...]`.
    """
    count = len(batches[0])
    if rows is None or count == 0:
        return function(*batches)
    results = []
    for start in range(0, count, rows):
        lot = [batch[start : start + rows] for batch in batches]
        size = len(lot[0])
        if size < rows:
            lot = [torch.cat([part, part[-1:].expand(rows - size, *part.shape[1:])]) for part in lot]
        results.append(function(*lot)[:size])
    return torch.cat(results)


def pictures_at_once(height: int, width: int) -> int:
    """How many pictures of that size in pixels are encoded or decoded in one forward."""
    return max(1, PIXELS_AT_ONCE // (height * width))
