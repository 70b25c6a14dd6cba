"""Positions of words and of a picture's tokens, and the rotation of queries and keys by them.

A token has two positions, down and across. A word has its place in the sequence for both. The tokens of a
picture lie on a grid whose middle is where the middle of the picture lies in the sequence; half of the
frequencies turn with one axis, half with the other.

Reference:
    Su, Transformer upgrade path 17: simple thoughts on multimodal positions (kexue.fm/archives/10352).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["picture_positions", "rotate", "rotation", "word_positions"]


def word_positions(places: Tensor) -> Tensor:
    """Both positions `[..., 2]` of words at `places` `[...]` of their sequence."""
    return places[..., None].expand(*places.shape, 2)


def picture_positions(start: Tensor, height: int, width: int) -> Tensor:
    """Positions `[N, height * width, 2]` of pictures whose first token stands at `start` `[N]`.

    Args:
        start: Place in the sequence of the upper left token.
        height: Tokens.
        width: Tokens.
    """
    count = height * width
    # Half positions are rounded down, as in training.
    top, left = (count - height) // 2, (count - width) // 2
    down = torch.arange(height, device=start.device) + top
    across = torch.arange(width, device=start.device) + left
    grid = torch.stack(torch.meshgrid(down, across, indexing="ij"), -1).flatten(0, 1)
    return start[:, None, None] + grid


def rotation(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine `[..., head_dim]` float32 of positions `[..., 2]` (down, across)."""
    pairs = torch.arange(0, head_dim, 2, device=positions.device).float()
    frequencies = 1.0 / theta ** (pairs / head_dim)
    axis = torch.arange(head_dim // 2, device=positions.device) % 2
    angle = positions.float()[..., axis] * frequencies
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def rotate(heads: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Heads `[B, H, Q, D]`, turned by cosine and sine `[B, Q, D]`, in float32."""
    cosine, sine = (part[:, None] for part in turn)
    one, other = heads.chunk(2, -1)
    return heads * cosine + torch.cat([-other, one], -1) * sine
