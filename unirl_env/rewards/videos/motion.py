"""Does anything move in a video?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from unirl_env.arguments.values import is_number, is_whole, require
from unirl_env.errors import ConfigError
from unirl_env.rewards.inputs import video_of
from unirl_env.rewards.videos.block_matching import (
    CONTRAST,
    FIT,
    REACH,
    SLACK,
    checked_side,
    contrast,
    correlation,
    cut,
    nearest,
    reduced,
)
from unirl_env.types import Prompt, Sample, Scores

GAIN = 0.1
"""How much better a block must fit elsewhere than where it was, to have moved."""
KNOWN = 2 / 3
"""The least share of the blocks that must be found again; of unlike pictures, a few are by chance."""


class MotionScorer:
    """How fast the fastest things of a video move, from 0 for a frozen one to 1 for `enough`.

    Frames are compared reduced to `side` pixels, by block matching: neighbouring frames, and frames `lag`
    apart, which shows slow motion. Of a pair of frames counts the mean of the fastest `share` of the blocks,
    in shares of the shorter side per frame; of a video the mean over its pairs. At 64 pixels and a lag of 8,
    speeds from about 0.2 % to 12 % of the side per frame are seen.

    A block has moved if it is found elsewhere clearly better than where it was, and if it is found in a third
    frame, too, on the way that the first two tell: for neighbours the frame after them, for frames farther
    apart the one half-way. Chance does not repeat itself, so noise, jumps and unrelated pictures are no
    motion, smooth ones included; nor is flicker of brightness or contrast that does not clip. A pair of which
    less than two thirds of the blocks are found in all three frames shows different things, not moving ones,
    and counts 0. What remains below `floor` is taken off. What the blocks cannot see: motion of things
    without detail inside (their outlines are seen), rotation on the spot, and what leaves the frame.

    Smoothness is not judged: multiply it with `temporal_consistency`. A video of less than three frames is
    invalid, as is one that is not finite. Its parts are `speed`, in shares of the shorter side per frame, and
    `followed`, the mean share of the blocks that were found again, by the better of the two comparisons.

    Args:
        enough: The speed that earns 1, in shares of the shorter side per frame. VBench calls a video dynamic
            from about 0.023 per eighth of a second on.
        floor: The speed that earns 0, likewise.
        lag: The frames between the slower comparison; fewer where the video is shorter.
        pairs: The most pairs per lag, evenly spread over the video.
        share: The share of the blocks that counts, so that small things count as much as large ones.
        side: The shorter side of the reduced frames in pixels.

    Raises:
        ConfigError: If a setting is out of range.

    Reference:
        Huang et al. 2024 (VBench), arXiv:2311.17982, dynamic degree, which takes the fastest 5 % of the
        optical flow of a network.
    """

    name = "motion"
    needs = ("video",)
    pointwise = True

    def __init__(
        self,
        enough: float = 0.01,
        *,
        floor: float = 0.002,
        lag: int = 8,
        pairs: int = 16,
        share: float = 0.05,
        side: int = 64,
    ):
        if not (is_number(floor) and is_number(enough) and 0 <= floor < enough <= 1):
            raise ConfigError(
                f"`floor` and `enough` must be 0 <= floor < enough <= 1, shares of the side per frame, got "
                f"{floor!r} and {enough!r}; try 0.002 and 0.01."
            )
        for label, number, usual in (("lag", lag, 8), ("pairs", pairs, 16)):
            fits = is_whole(number) and number >= 1
            require(label, number, fits, "a whole number from 1 on", f"try {usual}")
        require("share", share, is_number(share) and 0 < share <= 1, "a number in (0, 1]", "try 0.05")
        self.enough, self.floor = float(enough), float(floor)
        self.lag, self.pairs, self.share = lag, pairs, float(share)
        self.side = checked_side(side)

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Measure the motion of every sample.

        Raises:
            ContractError: If a sample has no video `[F, 3, H, W]`, or a side more than 8 times the other.
        """
        measured = [self._measured(video_of(sample, self.name).cpu()) for sample in samples]
        speed, followed = torch.tensor(measured).reshape(-1, 2).unbind(dim=1)
        value = ((speed - self.floor) / (self.enough - self.floor)).clamp(0, 1)
        return Scores(value=value, parts={"speed": speed, "followed": followed})

    def _measured(self, video: Tensor) -> tuple[float, float]:
        """The speed, and the share of the blocks that were found again."""
        if len(video) < 3 or not video.isfinite().all():
            return math.nan, math.nan
        frames = reduced(video, self.side)
        speeds, followed = [], []
        for first in _spread(len(frames) - 1, self.pairs):
            fastest, known = torch.zeros(1), 0.0
            for lag in sorted({1, min(self.lag, len(frames) - 1)}):
                # Late in the video, the slower comparison looks back.
                start = min(first, len(frames) - 1 - lag)
                far, share = moved(frames, start, start + lag)
                known = max(known, share)
                if share >= KNOWN:
                    fastest = torch.maximum(fastest, far / lag)
            followed.append(known)
            speeds.append(fastest.topk(max(1, round(self.share * len(fastest)))).values.mean() / self.side)
        return float(torch.stack(speeds).mean()), sum(followed) / len(followed)


def moved(frames: Tensor, start: int, end: int) -> tuple[Tensor, float]:
    """How far each block of a frame lies away in a later one, with a third frame as the witness.

    Args:
        frames: `[F, 3, h, w]` in [0, 1], at least three.
        start: The frame whose blocks are looked for.
        end: The later frame.

    Returns:
        `[n]` distances in pixels, 0 for a block that has not moved, or cannot be followed; and the share of
        the blocks with contrast that were found again in both frames, moved or not: where it is low, the
        frames do not show the same things. It is 1 if there are no such blocks.
    """
    blocks, place = cut(frames[start])
    far = torch.zeros(len(blocks))
    seen = contrast(blocks) >= CONTRAST
    if not seen.any():
        return far, 1.0
    blocks, place = blocks[seen], place[seen]
    still = correlation(blocks, frames[end], place)[:, 0, 0]
    way = torch.zeros_like(place)
    if (loose := still < 1 - GAIN).any():
        fit, offset = nearest(correlation(blocks[loose], frames[end], place[loose], REACH))
        old = still[loose]
        # A sliding edge fits everywhere along itself, noise misfits everywhere: neither gains by a place.
        gone = (fit >= FIT) & (fit - old >= GAIN) & (1 - fit <= 0.5 * (1 - old))
        way[loose] = offset * gone[:, None]
    third = _witness(start, end, len(frames))
    there = place + (way * (third - start) / (end - start)).round().long()
    witnessed, _ = nearest(correlation(blocks, frames[third], there, SLACK))
    found = ((way != 0).any(dim=1) | (still >= FIT)) & (witnessed >= FIT)
    far[seen] = way.float().norm(dim=1) * found
    return far, float(found.float().mean())


def _witness(start: int, end: int, count: int) -> int:
    """The frame half-way, or next to two neighbours."""
    if end - start > 1:
        return (start + end) // 2
    return end + 1 if end + 1 < count else start - 1


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of `range(count)`, evenly spread, with the first and the last."""
    if count <= most:
        return list(range(count))
    return torch.linspace(0, count - 1, most, dtype=torch.float64).round().long().tolist()
