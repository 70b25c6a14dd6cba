"""Latents and pictures as rows of patches, each a row of pixels after row, channels last."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["CHANNELS", "LATENT_WIDTH", "PATCH", "grid_places", "joined", "parted"]

CHANNELS, PATCH = 16, 2
"""Of a latent, and the latents along the side of a token."""
LATENT_WIDTH = CHANNELS * PATCH**2


def parted(planes: Tensor, patch: int = PATCH) -> tuple[Tensor, tuple[int, int]]:
    """Planes `[N, C, H, W]` as patches `[N, L, patch * patch * C]`, and how many rows and columns of them."""
    count, channels, height, width = planes.shape
    grid = height // patch, width // patch
    split = planes.reshape(count, channels, grid[0], patch, grid[1], patch)
    return split.permute(0, 2, 4, 3, 5, 1).reshape(count, grid[0] * grid[1], -1), grid


def joined(patches: Tensor, grid: tuple[int, int], patch: int = PATCH) -> Tensor:
    """The planes `[N, C, H, W]` whose patches are `patches` `[N, L, patch * patch * C]`."""
    split = patches.reshape(len(patches), *grid, patch, patch, -1)
    return split.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, grid[0] * patch, grid[1] * patch)


def grid_places(rows: int, columns: int, side: int, device: torch.device | str) -> Tensor:
    """Places `[rows * columns]` int64 in a table of a square of `side` by `side`."""
    row = torch.arange(rows, device=device)[:, None]
    return (row * side + torch.arange(columns, device=device)).flatten()
