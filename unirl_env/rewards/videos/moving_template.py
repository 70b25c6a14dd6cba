"""How well a clip matches ideal clips of its caption, and no other caption; for evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as nnf
from torch import Tensor

from unirl_env.prompts.moving import DIRECTIONS
from unirl_env.prompts.shapes import BACKGROUND, COLOURS, SHAPES, Scenes, render
from unirl_env.rewards.captions import moving_caption_of, require_moving_caption
from unirl_env.rewards.inputs import video_of
from unirl_env.rewards.videos.block_matching import reduced
from unirl_env.types import Prompt, Sample, Scores

SIDE = 32
"""The shorter side of the clips that are compared, in pixels."""
RADII = (0.13, 0.155, 0.18)
"""Of the drawn things, in shares of the side."""
WAYS = tuple(range(8, 24, 2))
"""Pixels from the first frame to the last."""
HEAT = 0.02
"""A difference of correlations that makes one caption e times as probable as another."""


class MovingTemplateScorer:
    """How well the clip matches the best ideal clip of its caption, and how much better than any other.

    The clip, its own median colour taken away, is correlated with drawings of all 72 captions at every place,
    at eight speeds and three sizes, and of the 18 things standing still. `value` is the correlation `fit` of
    the asked caption's best drawing, in [0, 1], times `share`, the softmax of the fits over all 90. Every
    pixel of every frame counts alike, nothing is segmented, tracked or classified: independent of
    `moving_shapes`, hence the reward to hold out when that one is trained on. An ideal clip has about 0.8.
    Where the caption stands and what is invalid is as in `MovingShapesScorer`.

    The correlation is that of whole clips, of the norm of what was seen: noise, flicker, a second thing, and
    frames in which the thing is missing or elsewhere lower it.
    """

    name = "moving_template"
    needs = ("video",)
    pointwise = True
    asks = staticmethod(require_moving_caption)

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score `samples[i].video` (`[F, 3, H, W]` in [0, 1], any size) against the caption.

        Raises:
            ContractError: If a sample has no video `[F, 3, H, W]`, or a side more than 8 times the other.
        """
        found = torch.full((3, len(samples)), torch.nan)
        for i, (sample, prompt) in enumerate(zip(samples, prompts, strict=True)):
            video, caption = video_of(sample, self.name).cpu(), moving_caption_of(prompt)
            if caption is None or len(video) < 2 or not video.isfinite().all():
                continue
            moving, still = fits(video)
            every = torch.cat([moving.flatten(), still.flatten()]) / HEAT
            asked = moving[
                list(COLOURS).index(caption.colour),
                SHAPES.index(caption.shape),
                list(DIRECTIONS).index(caption.direction),
            ]
            share = (asked / HEAT - every.logsumexp(dim=0)).exp()
            found[:, i] = torch.stack([asked.clamp(0, 1) * share, asked, share])
        return Scores(found[0], {"fit": found[1], "share": found[2]})


def fits(video: Tensor) -> tuple[Tensor, Tensor]:
    """The correlation of a clip with the best drawing of each caption, and of each thing that stands still.

    Args:
        video: `[F, 3, H, W]` in [0, 1].

    Returns:
        `[colours, shapes, directions]` and `[colours, shapes]`, each in [-1, 1].
    """
    frames = reduced(video, SIDE).clamp(0, 1)
    count, _, height, width = frames.shape
    seen = frames - frames.transpose(0, 1).flatten(1).median(dim=1).values[:, None, None]
    hues = torch.tensor(list(COLOURS.values())) - torch.tensor(BACKGROUND)
    hues = hues / hues.norm(dim=1, keepdim=True)
    by_hue = torch.einsum("fchw,kc->fkhw", seen, hues).reshape(-1, 1, height, width)
    kernels = _kernels()
    maps = nnf.conv2d(by_hue, kernels, padding="same").view(count, len(hues), -1, height, width)
    norm = math.sqrt(count) * seen.norm().clamp(min=1e-3)

    def best(x: int, y: int) -> Tensor:
        """The largest sum along a way of so many pixels; `[colours, shapes]`."""
        shift = [(round(x * t / (count - 1)), round(y * t / (count - 1))) for t in range(count)]
        tall, wide = height - abs(y), width - abs(x)
        total = torch.zeros(*maps.shape[1:3], tall, wide)
        for frame, (right, down) in zip(maps, shift, strict=True):
            top, left = down + max(0, -y), right + max(0, -x)
            total += frame[:, :, top : top + tall, left : left + wide]
        return (total.amax(dim=(2, 3)) / norm).unflatten(1, (len(SHAPES), -1)).amax(dim=2)

    ways = [torch.stack([best(x * far, y * far) for far in WAYS]).amax(dim=0) for x, y in DIRECTIONS.values()]
    return torch.stack(ways, dim=2), best(0, 0)


@lru_cache(maxsize=1)
def _kernels() -> Tensor:
    """The covers of all shapes and sizes, of norm 1, `[shapes * sizes, 1, k, k]`."""
    side = 2 * math.ceil(max(RADII) * SIDE) + 1
    count = len(SHAPES) * len(RADII)
    scenes = Scenes(
        rgb=torch.ones(count, 1, 3),
        shape=torch.arange(len(SHAPES)).repeat_interleave(len(RADII))[:, None],
        centre=torch.full((count, 1, 2), 0.5),
        radius=torch.tensor(RADII * len(SHAPES))[:, None] * SIDE / side,
    )
    covers = (render(scenes, side)[:, :1] - BACKGROUND[0]) / (1 - BACKGROUND[0])
    return covers / covers.flatten(1).norm(dim=1)[:, None, None, None]
