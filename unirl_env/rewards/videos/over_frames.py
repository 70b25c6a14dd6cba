"""A reward of pictures over all frames of a video."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from unirl_env.arguments.values import is_whole
from unirl_env.errors import ConfigError
from unirl_env.rewards.over_pictures import over_several
from unirl_env.rewards.scoring import checked_scorer, is_pointwise
from unirl_env.rewards.videos.frames import video_of
from unirl_env.types import Prompt, Sample, Scorer, Scores

__all__ = ["OverFrames"]

NAMED = {"mean": Tensor.mean, "min": Tensor.amin, "max": Tensor.amax}
SHOWN = ["mean", "min", "max", "median", "p1 ... p99"]


class OverFrames:
    """Another reward over the frames of a video: all of them, so that none can be spoiled unseen.

    Every frame is judged as a picture against the sample's prompt, all frames of all samples in one call of
    the scorer; a sample is invalid if one of its frames is. A low percentile (`p10`) or `min` asks that
    every frame be good, where `mean` lets good ones pay for bad ones.

    Its parts are `best` and `worst`, and `scorer`, the mean, with the means of that one's parts below it.

    Args:
        scorer: The reward of one picture.
        aggregate: `"mean"`, `"min"`, `"max"`, `"median"`, or a percentile, `"p10"` for the 10th; between two
            frames, percentiles and the median are interpolated.
        every: Judge every so manieth frame only, beginning with the first, and the last one always: for
            scorers that cost more than the frames between are worth. A policy can learn to spoil those.

    Raises:
        ConfigError: If the scorer cannot be called, the aggregate is none of these, or `every` is below 1.
    """

    wraps = ("scorer",)

    def __init__(self, scorer: Scorer, aggregate: str = "mean", every: int = 1, *, name: str = ""):
        self.scorer = checked_scorer(scorer)
        self.pointwise = is_pointwise(scorer)
        self._aggregate = _aggregated(aggregate)
        if not is_whole(every) or every < 1:
            raise ConfigError(f"`every` must be a whole number from 1 on, got {every!r}; try 1.")
        self.every = every
        self.name = name or "over_frames"

    @staticmethod
    def needs_with(**options: Any) -> tuple[str, ...]:
        """A video in place of the scorer's picture, and what else the scorer needs."""
        from unirl_env.rewards.spec import needs_of

        inner = needs_of(options["scorer"]) if "scorer" in options else {}
        return ("video", *sorted(set(inner) - {"image", "pictures", "video"}))

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score the frames of every sample.

        Raises:
            ContractError: If a sample has no video `[F, 3, H, W]`.
        """
        several = [self._frames(sample) for sample in samples]
        return over_several(self.scorer, several, prompts, self._aggregate)

    def _frames(self, sample: Sample) -> list[Sample]:
        """A sample for each frame that is judged."""
        video = video_of(sample, self.name)
        last = len(video) - 1
        chosen = [*range(0, last, self.every), last]
        return [replace(sample, image=video[i], pictures=None, video=None) for i in chosen]


def _aggregated(aggregate: str) -> Callable[[Tensor], Tensor]:
    if aggregate in NAMED:
        return NAMED[aggregate]
    percent = re.fullmatch(r"p([1-9]\d?)", str(aggregate))
    if aggregate != "median" and not percent:
        raise ConfigError(f"`aggregate` must be one of {SHOWN}, got {aggregate!r}; try 'mean'.")
    share = 0.5 if aggregate == "median" else int(percent[1]) / 100
    return lambda values: values.quantile(share)
