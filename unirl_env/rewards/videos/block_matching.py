"""How far the blocks of one frame have moved in another."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

__all__ = ["grey_frames", "moved"]

LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601."""


def grey_frames(video: Tensor, side: int) -> Tensor:
    """`[F, 3, H, W]` in [0, 1] to `[F, h, w]`, the shorter side of which is `side` pixels."""
    weights = torch.tensor(LUMA, device=video.device)
    grey = torch.einsum("fchw,c->fhw", video.float(), weights)
    height, width = grey.shape[1:]
    scale = side / min(height, width)
    size = (round(height * scale), round(width * scale))
    if size == (height, width):
        return grey
    return nnf.interpolate(grey[:, None], size, mode="bilinear", antialias=True, align_corners=False)[:, 0]


def moved(
    before: Tensor,
    after: Tensor,
    *,
    block: int = 8,
    reach: int = 8,
    contrast: float = 0.02,
    fit: float = 0.8,
    gain: float = 0.1,
) -> tuple[Tensor, float]:
    """How far each block of `before` lies away in `after`.

    Blocks are compared by their zero-mean normalised correlation, which no change of brightness or contrast
    touches. A block has moved if it has any contrast; if at some other place within `reach` it fits well, and
    better than at its old place by `gain`, with at most half the misfit; and if what is found there would be
    found at the old place, looked for in `before`. Noise misfits everywhere alike, an edge that slides along
    itself fits everywhere alike, and neither finds its way back.

    Args:
        before: `[h, w]` in [0, 1].
        after: `[h, w]`.
        block: The side of a block in pixels; blocks overlap by half.
        reach: The most pixels that a block is looked for, each way.
        contrast: The least standard deviation of a block that can be followed.
        fit: The least correlation that is a fit.
        gain: How much better than at the old place.

    Returns:
        `[n]` distances in pixels, in both directions together, 0 for a block that has not moved, or cannot be
        followed; and the share of the blocks with contrast that were found again, moved or not: where it is
        low, the two frames do not show the same things. It is 1 if there are no such blocks.

    Reference:
        Lewis 1995, Fast Normalized Cross-Correlation.
    """
    step = max(1, block // 2)
    own, spread = _standardised(before, block)
    other, _ = _standardised(after, block)
    height, width = spread.shape
    offsets = torch.arange(-reach, reach + 1)
    offsets = torch.cartesian_prod(offsets, offsets)
    # Of equal fits the nearest one.
    distance = offsets.float().norm(dim=-1)
    price = 1e-3 * distance / distance.max()
    # Beyond the frame there is nothing to fit: zeros correlate with nothing.
    padded = nnf.pad(other, (0, 0, reach, reach, reach, reach))
    blocks = own[::step, ::step]
    fits = torch.stack(
        [
            (padded[top : top + height : step, left : left + width : step] * blocks).sum(dim=-1)
            for top, left in (offsets + reach).tolist()
        ]
    )
    still = fits[len(fits) // 2]
    best, index = (fits - price[:, None, None]).max(dim=0)
    seen = spread[::step, ::step] >= contrast
    gone = seen & (best >= fit) & (best - still >= gain) & (1 - best <= 0.5 * (1 - still))
    place = step * gone.nonzero()
    where = place + offsets[index[gone]]
    padded = nnf.pad(own, (0, 0, reach, reach, reach, reach))
    ways = where[:, None] + offsets + reach
    back = (padded[ways[..., 0], ways[..., 1]] * other[where[:, 0], where[:, 1]][:, None]).sum(dim=-1)
    found = where + offsets[(back - price).argmax(dim=1)]
    returned = (found - place).abs().amax(dim=1) <= 1
    far = torch.zeros_like(best)
    far[gone] = torch.where(returned, distance[index[gone]], 0.0)
    known = seen & ((far > 0) | (still >= fit))
    return far.flatten(), float(known.sum() / seen.sum()) if seen.any() else 1.0


def _standardised(frame: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """All blocks `[h', w', block * block]` with mean 0 and norm 1, and their deviations `[h', w']`."""
    blocks = frame.unfold(0, block, 1).unfold(1, block, 1).flatten(-2)
    blocks = blocks - blocks.mean(dim=-1, keepdim=True)
    norm = blocks.norm(dim=-1, keepdim=True)
    return blocks / norm.clamp(min=1e-6), norm[..., 0] / block
