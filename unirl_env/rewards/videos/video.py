"""Videos: do their frames belong together, and does anything move?"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from unirl_env.arguments.signatures import PassesOptions
from unirl_env.arguments.values import is_whole, require
from unirl_env.errors import ConfigError
from unirl_env.rewards.inputs import video_of
from unirl_env.rewards.learned.placement import Placement
from unirl_env.types import Prompt, Sample, Scores

REACH = 8
"""Pixels of the reduced frames in which a block is looked for, each way."""
KNOWN = 2 / 3
"""The least share of the blocks that must be found again; of unlike pictures, half are by chance."""
LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601."""


class TemporalConsistency(PassesOptions, passes_to=Placement):
    """How alike the frames of a video are, 1 where nothing changes.

    Without a model: the structural similarity of neighbouring frames, in grey, reduced to `side` pixels and
    blurred by its window, averaged over the video and not below 0. Moving things lower it a little, cuts and
    flickering detail much. With a model: as VBench has it, the mean over all frames but the first of
    `(max(0, cos(frame, frame before)) + max(0, cos(frame, first frame))) / 2`, of the model's embeddings.

    A frozen video is perfectly consistent: multiply it with `motion`. A video of one frame has no neighbours
    and is invalid, as is one that is not finite. Its parts are `neighbours` and, with a model, `first`.

    Args:
        model: None compares pixels; else an architecture of open_clip, `"hf-hub:owner/name"` or
            `"local-dir:/path"`.
        pretrained: A tag of its weights, or the path of a checkpoint.
        side: The shorter side of the reduced frames in pixels, without a model.
        **network: Where and how the model computes; see `unirl_env.rewards.learned.placement.Placement`.

    Raises:
        MissingExtra: If a model is named and open_clip is not installed.
        ConfigError: If a setting is out of range.
        ModelNotFound: If the model cannot be loaded.

    Reference:
        Wang et al. 2004 (SSIM), doi:10.1109/TIP.2003.819861; Huang et al. 2024 (VBench), arXiv:2311.17982,
        background consistency.
    """

    name = "temporal_consistency"
    needs = ("video",)
    pointwise = True

    def __init__(
        self,
        model: str | None = None,
        pretrained: str | os.PathLike[str] | None = None,
        *,
        side: int = 64,
        **network: Any,
    ):
        self.side, placement = _checked_side(side), Placement(**network)
        self._model = None
        if model is not None:
            from unirl_env.rewards.learned.open_clip_model import OpenCLIPModel

            self._model = OpenCLIPModel(model, pretrained, placement, asker="TemporalConsistency")

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Compare the frames of every sample.

        Raises:
            ContractError: If a sample has no video `[F, 3, H, W]`.
        """
        videos = [video_of(sample, self.name) for sample in samples]
        if self._model is None:
            value = torch.tensor([self._structural(video) for video in videos])
            return Scores(value=value, parts={"neighbours": value})
        vectors = self._model.pictures([frame for video in videos for frame in video])
        pairs = torch.tensor([_likeness(own) for own in vectors.split([len(video) for video in videos])])
        return Scores(value=pairs.mean(dim=1), parts={"neighbours": pairs[:, 0], "first": pairs[:, 1]})

    def _structural(self, video: Tensor) -> float:
        if len(video) < 2 or not video.isfinite().all():
            return math.nan
        # In double precision: a variance is the small difference of two large numbers.
        frames = grey_frames(video, self.side).double()
        return float(_ssim(frames[:-1], frames[1:]).clamp(min=0).mean())


class MotionScorer:
    """How fast the fastest things of a video move, from 0 for a frozen one to 1 for `enough`.

    Frames are compared in grey, reduced to `side` pixels, by block matching: neighbouring frames, and frames
    `lag` apart, which shows slow motion. Of a pair of frames counts the mean of the fastest `share` of the
    blocks, in shares of the shorter side per frame; of a video the mean over its pairs. At 64 pixels and a
    lag of 8, speeds from about 0.2 % to 12 % of the side per frame are seen.

    Noise, and flicker of brightness or contrast that does not clip, are no motion: a block counts that is
    found elsewhere, and back, clearly better than where it was. A pair of which less than two thirds are
    found again shows different things, not moving ones, and counts 0: cuts, and frames of pure noise. What
    remains below `floor` is taken off. What the blocks cannot see: motion of things without detail inside,
    rotation on the spot, and what leaves the frame.

    Smoothness is not judged: multiply it with `temporal_consistency`. A video of one frame is invalid, as is
    one that is not finite. Its parts are `speed`, in shares of the shorter side per frame, and `followed`,
    the mean share of the blocks that were found again.

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
        if not 0 <= floor < enough <= 1:
            raise ConfigError(
                f"`floor` and `enough` must be 0 <= floor < enough <= 1, shares of the side per frame, got "
                f"{floor} and {enough}; try 0.002 and 0.01."
            )
        for label, number in (("lag", lag), ("pairs", pairs)):
            require(label, number, is_whole(number) and number >= 1, "a whole number from 1 on")
        if not 0 < share <= 1:
            raise ConfigError(f"`share` must lie in (0, 1], got {share}; try 0.05.")
        self.enough, self.floor = float(enough), float(floor)
        self.lag, self.pairs, self.share = lag, pairs, float(share)
        self.side = _checked_side(side)

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Measure the motion of every sample.

        Raises:
            ContractError: If a sample has no video `[F, 3, H, W]`.
        """
        measured = [self._measured(video_of(sample, self.name).cpu()) for sample in samples]
        speed, followed = torch.tensor(measured).reshape(-1, 2).unbind(dim=1)
        value = ((speed - self.floor) / (self.enough - self.floor)).clamp(0, 1)
        return Scores(value=value, parts={"speed": speed, "followed": followed})

    def _measured(self, video: Tensor) -> tuple[float, float]:
        """The speed, and the share of the blocks that were found again."""
        if len(video) < 2 or not video.isfinite().all():
            return math.nan, math.nan
        frames = grey_frames(video, self.side)
        speeds, followed = [], []
        for first in _spread(len(frames) - 1, self.pairs):
            fastest = torch.zeros(1)
            for lag in sorted({1, min(self.lag, len(frames) - 1)}):
                # Late in the video, the slower comparison looks back.
                start = min(first, len(frames) - 1 - lag)
                far, known = moved(frames[start], frames[start + lag], reach=REACH)
                followed.append(known)
                if known >= KNOWN:
                    fastest = torch.maximum(fastest, far / lag)
            speeds.append(fastest.topk(max(1, round(self.share * len(fastest)))).values.mean() / self.side)
        return float(torch.stack(speeds).mean()), sum(followed) / len(followed)


def _checked_side(side: int) -> int:
    require("side", side, is_whole(side) and side >= 16, "a whole number of pixels from 16 on", "try 64")
    return side


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of `range(count)`, evenly spread, with the first and the last."""
    if count <= most:
        return list(range(count))
    return torch.linspace(0, count - 1, most, dtype=torch.float64).round().long().tolist()


def _likeness(vectors: Tensor) -> tuple[float, float]:
    """The mean cosine of each unit vector but the first with the one before, and with the first."""
    if len(vectors) < 2:
        return math.nan, math.nan
    before = (vectors[1:] * vectors[:-1]).sum(dim=-1)
    first = (vectors[1:] * vectors[:1]).sum(dim=-1)
    return float(before.clamp(min=0).mean()), float(first.clamp(min=0).mean())


def _ssim(one: Tensor, other: Tensor, window: int = 7) -> Tensor:
    """The structural similarity `[N]` of pictures `[N, h, w]` in [0, 1], over uniform windows."""

    def local(pictures: Tensor) -> Tensor:
        return nnf.avg_pool2d(pictures[:, None], window, stride=1)[:, 0]

    mean, mean_other = local(one), local(other)
    variance = local(one * one) - mean**2
    variance_other = local(other * other) - mean_other**2
    together = local(one * other) - mean * mean_other
    bright, rough = 0.01**2, 0.03**2
    alike = (2 * mean * mean_other + bright) * (2 * together + rough)
    return (alike / ((mean**2 + mean_other**2 + bright) * (variance + variance_other + rough))).mean(
        dim=(1, 2)
    )


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
