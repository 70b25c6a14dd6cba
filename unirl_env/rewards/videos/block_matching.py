"""Frames made small, and their blocks found again in other frames."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

from unirl_env.arguments.values import is_whole, require
from unirl_env.errors import ContractError

BLOCK = 8
"""The side of a block in pixels of the reduced frames; blocks overlap by half."""
REACH = 8
"""Pixels of the reduced frames in which a block is looked for, each way."""
SLACK = 1
"""So many pixels beside its way, a thing is still on it: ways are whole pixels, and speeds change."""
CONTRAST = 0.02
"""The least standard deviation of a block that can be followed."""
FIT = 0.8
"""The least correlation that is a fit."""
LONGEST = 8
"""The most shorter sides that a longer side may have: a strip, enlarged, has any number of pixels."""


def checked_side(side: int) -> int:
    """The shorter side of reduced frames.

    Raises:
        ConfigError: If it is not a whole number of pixels from 16 on.
    """
    require("side", side, is_whole(side) and side >= 16, "a whole number of pixels from 16 on", "try 64")
    return side


def require_no_strip(video: Tensor) -> None:
    """Refuse a video `[F, 3, H, W]` of which one side is more than `LONGEST` times the other.

    Raises:
        ContractError: Naming the sides.
    """
    height, width = video.shape[2:]
    if max(height, width) > LONGEST * min(height, width):
        raise ContractError(
            f"`Sample.video` must have no side longer than {LONGEST} times the other, got {height} x {width} "
            "pixels; try cropping it."
        )


def reduced(video: Tensor, side: int) -> Tensor:
    """`[F, 3, H, W]` in [0, 1] to `[F, 3, h, w]`, the shorter side of which is `side` pixels.

    Raises:
        ContractError: As `require_no_strip`.
    """
    require_no_strip(video)
    video = video.float()
    height, width = video.shape[2:]
    scale = side / min(height, width)
    size = (round(height * scale), round(width * scale))
    if size == (height, width):
        return video
    return nnf.interpolate(video, size, mode="bilinear", antialias=True, align_corners=False)


def cut(frame: Tensor) -> tuple[Tensor, Tensor]:
    """The blocks of a frame `[3, h, w]`.

    Returns:
        `[n, 3, b, b]` blocks, and `[n, 2]` the row and the column of the first pixel of each.
    """
    step = BLOCK // 2
    blocks = frame.unfold(1, BLOCK, step).unfold(2, BLOCK, step).permute(1, 2, 0, 3, 4)
    rows, columns = (step * torch.arange(count) for count in blocks.shape[:2])
    return blocks.flatten(0, 1), torch.cartesian_prod(rows, columns)


def contrast(blocks: Tensor) -> Tensor:
    """The standard deviation `[n]` of blocks `[n, 3, b, b]`, each colour about its own mean."""
    return (blocks - blocks.mean(dim=(2, 3), keepdim=True)).square().mean(dim=(1, 2, 3)).sqrt()


def correlation(blocks: Tensor, frame: Tensor, place: Tensor, reach: int = 0) -> Tensor:
    """How well each block fits at the places of a frame near its own, whatever the light.

    The zero-mean normalised correlation over the three colours together, which no change of brightness or
    contrast touches. Where the frame has no contrast it is small.

    Args:
        blocks: `[n, 3, b, b]`.
        frame: `[3, h, w]`.
        place: `[n, 2]` rows and columns to look around; they may lie outside.
        reach: So many pixels each way.

    Returns:
        `[n, 2 * reach + 1, 2 * reach + 1]` in [-1, 1]; minus infinity outside the frame.

    Reference:
        Lewis 1995, Fast Normalized Cross-Correlation.
    """
    own = blocks - blocks.mean(dim=(2, 3), keepdim=True)
    own = own / own.flatten(1).norm(dim=1).clamp(min=1e-6)[:, None, None, None]
    mean = nnf.avg_pool2d(frame, BLOCK, stride=1)
    variance = (nnf.avg_pool2d(frame.square(), BLOCK, stride=1) - mean.square()).mean(dim=0).clamp(min=0)
    norm = variance.sqrt().clamp(min=CONTRAST / 2) * (3 * BLOCK**2) ** 0.5
    (local,), outside = _near(norm[None], place, reach, 1)
    return (_products(own, frame, place, reach) / local).masked_fill(outside, -torch.inf)


def likeness(blocks: Tensor, frame: Tensor, place: Tensor, reach: int = 0) -> Tensor:
    """Minus the mean squared difference, light included; else as `correlation`."""
    covered, _ = _near(frame, place, reach, BLOCK)
    covered = covered.unfold(2, BLOCK, 1).unfold(3, BLOCK, 1)
    apart = covered - blocks.transpose(0, 1)[:, :, None, None]
    # Not by products, whose sums would leave a difference between equal blocks.
    _, outside = _near(frame[:1, BLOCK - 1 :, BLOCK - 1 :], place, reach, 1)
    return -apart.square().mean(dim=(0, 4, 5)).masked_fill(outside, torch.inf)


def nearest(surface: Tensor) -> tuple[Tensor, Tensor]:
    """The largest value of each `surface` `[n, s, s]`, and how far from its middle it lies.

    Returns:
        `[n]` values, minus infinity where all places lie outside, and `[n, 2]` offsets in rows and columns;
        of values within a thousandth the nearest.
    """
    reach = surface.shape[1] // 2
    axis = torch.arange(-reach, reach + 1)
    price = 1e-3 * torch.hypot(axis[:, None].float(), axis.float()) / max(reach, 1)
    index = (surface - price).flatten(1).argmax(dim=1)
    offset = torch.stack([index // len(axis), index % len(axis)], dim=1) - reach
    return surface.amax(dim=(1, 2)), offset


def _near(maps: Tensor, place: Tensor, reach: int, side: int) -> tuple[Tensor, Tensor]:
    """Of maps `[c, h, w]` the squares `[c, n, s, s]` of all that a block of `side` covers within reach.

    Also `[n, s, s]`, which of its pixels lie outside.
    """
    rows, columns = (place[:, axis, None] + torch.arange(-reach, reach + side) for axis in (0, 1))
    height, width = maps.shape[1:]
    outside = ((rows < 0) | (rows >= height))[:, :, None] | ((columns < 0) | (columns >= width))[:, None, :]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    return maps[:, rows[:, :, None], columns[:, None, :]], outside


def _products(blocks: Tensor, frame: Tensor, place: Tensor, reach: int) -> Tensor:
    """The sum of the products of each block with what it would cover, `[n, 2 * reach + 1, ...]`."""
    squares, _ = _near(frame, place, reach, BLOCK)
    if not reach:
        return (squares.transpose(0, 1) * blocks).sum(dim=(1, 2, 3))[:, None, None]
    squares = squares.transpose(0, 1).reshape(1, -1, *squares.shape[2:])
    return nnf.conv2d(squares, blocks, groups=len(blocks))[0]
