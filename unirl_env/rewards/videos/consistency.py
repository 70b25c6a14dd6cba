"""Do the frames of a video belong together?"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unirl_env.arguments.copies import FromArguments
from unirl_env.arguments.signatures import PassesOptions
from unirl_env.arguments.values import require
from unirl_env.rewards.inputs import video_of
from unirl_env.rewards.learned.placement import Placement
from unirl_env.rewards.videos.block_matching import (
    BLOCK,
    CONTRAST,
    FIT,
    REACH,
    SLACK,
    checked_side,
    contrast,
    correlation,
    cut,
    likeness,
    nearest,
    reduced,
)
from unirl_env.types import Prompt, Sample, Scores

UNSEEN = 0.03**2
"""A squared difference too small to be seen; as the structural similarity's constant of contrast."""


class TemporalConsistency(PassesOptions, FromArguments, passes_to=Placement):
    """How well each frame of a video continues its neighbours, 1 where nothing changes.

    Without a model, each frame is predicted from its neighbours, on the pixels of frames reduced to `side`:
    every block of a frame stays where it is, or goes on as it came, by the way on which it was found from
    the frame before. The way is told by two frames and judged by a third, so that blocks which only happen
    to be alike, as those of smooth pictures are, earn nothing. The same is done backwards, and the better of
    the two counts for a pair of neighbours. The value is `1 - sqrt(misfit / unlike)`, not below 0: the mean
    squared error of the predictions, and twice the variance of all pixels of the video, which is what two
    pixels taken at random differ by. So steady motion costs little; noise, flicker and jumps cost as much as
    they can be seen, a cut in a clip of 9 frames about a third, and unrelated frames nearly all.

    With a model: as VBench has it, the mean over all frames but the first of
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
        Huang et al. 2024 (VBench), arXiv:2311.17982, background consistency.
    """

    name = "temporal_consistency"
    needs = ("video",)
    pointwise = True

    @staticmethod
    def check_with(
        model: str | None = None, pretrained: str | os.PathLike[str] | None = None, **options: Any
    ) -> None:
        """Refuse weights of no model.

        Raises:
            ConfigError: Saying what to try.
        """
        fits = model or pretrained is None
        require("pretrained", pretrained, fits, "None without a `model`", "try model='ViT-B-16'")

    def __init__(
        self,
        model: str | None = None,
        pretrained: str | os.PathLike[str] | None = None,
        *,
        side: int = 64,
        **network: Any,
    ):
        self.side, placement = checked_side(side), Placement(**network)
        self.check_with(model, pretrained)
        self._model = None
        if model is not None:
            from unirl_env.rewards.learned.open_clip_model import OpenCLIPModel

            self._model = OpenCLIPModel(model, pretrained, placement, asker="TemporalConsistency")

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Compare the frames of every sample.

        Raises:
            ContractError: If a sample has no video `[F, 3, H, W]`, or a side more than 8 times the other.
        """
        videos = [video_of(sample, self.name) for sample in samples]
        if self._model is None or not videos:
            value = torch.tensor([self._continuity(video.cpu()) for video in videos])
            return Scores(value=value, parts={"neighbours": value})
        vectors = self._model.pictures([frame for video in videos for frame in video])
        pairs = torch.tensor(
            [vbench_likeness(own) for own in vectors.split([len(video) for video in videos])]
        )
        return Scores(value=pairs.mean(dim=1), parts={"neighbours": pairs[:, 0], "first": pairs[:, 1]})

    def _continuity(self, video: Tensor) -> float:
        if len(video) < 2 or not video.isfinite().all():
            return math.nan
        frames = reduced(video, self.side)
        unlike = 2 * frames.double().var(dim=(0, 2, 3), correction=0).mean() + UNSEEN
        share = float(torch.stack(surprises(frames)).mean() / unlike)
        return 1 - math.sqrt(min(share, 1.0))


def surprises(frames: Tensor) -> list[Tensor]:
    """Of every two neighbours of `frames` `[F, 3, h, w]`, the mean squared error of predicting one."""
    whole = [None, *frames, None]
    return [
        torch.minimum(surprise(*whole[t : t + 3]), surprise(*reversed(whole[t + 1 : t + 4])))
        for t in range(len(frames) - 1)
    ]


def surprise(origin: Tensor | None, start: Tensor, target: Tensor) -> Tensor:
    """The mean squared error of `target`, predicted from the way from `origin` to `start`.

    Args:
        origin: `[3, h, w]`; None predicts that all stays where it is.
        start: `[3, h, w]`, whose blocks are predicted. Those that leave the frame are not judged.
        target: `[3, h, w]`.

    Returns:
        A number from 0 on.
    """
    blocks, place = cut(start)
    error = -likeness(blocks, target, place)[:, 0, 0]
    changed = (error > UNSEEN / 10) & (contrast(blocks) >= CONTRAST)
    if origin is None or not changed.any():
        return error.mean()
    blocks, place = blocks[changed], place[changed]
    fit, back = nearest(correlation(blocks, origin, place, REACH))
    there = place - back
    least, _ = nearest(likeness(blocks, target, there, SLACK))
    goes = (fit >= FIT) & (back != 0).any(dim=1)
    judged = torch.ones(len(error), dtype=torch.bool)
    size = torch.tensor(target.shape[1:]) - BLOCK
    judged[changed] = ~(goes & ((there < 0) | (there > size)).any(dim=1))
    error[changed] = torch.where(goes, torch.minimum(error[changed], -least), error[changed])
    return error[judged].mean() if judged.any() else error.mean()


def vbench_likeness(vectors: Tensor) -> tuple[float, float]:
    """The mean cosine, not below 0, of each unit vector with the one before, and with the first.

    Args:
        vectors: `[F, D]`, of the frames of a video.

    Returns:
        Two numbers, NaN where there is one frame.
    """
    if len(vectors) < 2:
        return math.nan, math.nan
    before = (vectors[1:] * vectors[:-1]).sum(dim=-1)
    first = (vectors[1:] * vectors[:1]).sum(dim=-1)
    return float(before.clamp(min=0).mean()), float(first.clamp(min=0).mean())
