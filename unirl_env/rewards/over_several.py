"""One reward for several pictures of one text, or for all frames of a video."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unirl_env.arguments.values import is_whole, require
from unirl_env.rewards.compose import ScorerWrapper
from unirl_env.rewards.inputs import tensor_of, video_of
from unirl_env.rewards.scoring import score_safely
from unirl_env.types import Prompt, Sample, Scorer, Scores

AGGREGATES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "mean": Tensor.mean,
    "max": Tensor.amax,
    "min": Tensor.amin,
}
SHOWN = ["mean", "min", "max", "median", "p1 ... p99"]


class OverPictures(ScorerWrapper):
    """Another reward over all pictures of a sample: their mean, the best or the worst.

    One picture says little about a text, as the generator's noise has its share in it: the mean over several
    is a less noisy reward. A sample without `pictures` is judged as it is. All pictures are judged in one
    call of the scorer; a sample is invalid if one of its pictures is.

    Its parts are `best` and `worst`, and `scorer`, the mean, with the means of that one's parts below it.

    Args:
        scorer: The reward of one picture.
        aggregate: `"mean"`, `"max"` or `"min"`.

    Raises:
        ConfigError: If the scorer cannot be called, or the aggregate is none of these.
    """

    NAME = "over_pictures"

    def __init__(self, scorer: Scorer, aggregate: str = "mean", *, name: str = ""):
        super().__init__(scorer, name)
        require("aggregate", aggregate, aggregate in AGGREGATES, f"one of {list(AGGREGATES)}")
        self.aggregate = aggregate

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score every picture of every sample.

        Raises:
            ContractError: If the pictures of a sample are no tensor.
        """
        single = [_one_by_one(sample, self.name) for sample in samples]
        return _over_several(self.scorer, single, prompts, AGGREGATES[self.aggregate])


class OverFrames(ScorerWrapper):
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

    NAME = "over_frames"

    def __init__(self, scorer: Scorer, aggregate: str = "mean", every: int = 1, *, name: str = ""):
        super().__init__(scorer, name)
        self._aggregate = _aggregated(aggregate)
        require("every", every, is_whole(every) and every >= 1, "a whole number from 1 on", "try 1")
        self.every = every

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
        return _over_several(self.scorer, several, prompts, self._aggregate)

    def _frames(self, sample: Sample) -> list[Sample]:
        """A sample for each frame that is judged."""
        video = video_of(sample, self.name)
        last = len(video) - 1
        chosen = [*range(0, last, self.every), last]
        return [replace(sample, image=video[i], pictures=None, video=None) for i in chosen]


def _over_several(
    scorer: Scorer,
    several: Sequence[Sequence[Sample]],
    prompts: Sequence[Prompt],
    aggregate: Callable[[Tensor], Tensor],
) -> Scores:
    """One score for several samples of one prompt, all judged in one call.

    Args:
        scorer: The reward of one of them.
        several: B lists, none of them empty.
        prompts: The prompt of each list.
        aggregate: The values `[n]` of a list to one number, NaN where one of them is.

    Returns:
        B scores with the parts `scorer` (the mean), `best`, `worst`, and `scorer/...`, the means of the
        scorer's own parts; invalid where one of a list is.
    """
    counts = [len(own) for own in several]
    scores = score_safely(
        scorer,
        [sample for own in several for sample in own],
        [prompt for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)],
    )
    values = scores.value.split(counts)
    value, mean, best, worst = (
        torch.stack([reduce(own) for own in values])
        for reduce in (aggregate, Tensor.mean, Tensor.amax, Tensor.amin)
    )
    parts = {
        f"scorer/{name}": torch.stack([own.nanmean() for own in part.split(counts)])
        for name, part in scores.parts.items()
    }
    return Scores(
        value=value,
        parts={"scorer": mean, "best": best, "worst": worst, **parts},
        valid=torch.stack([own.all() for own in scores.valid.split(counts)]),
    )


def _one_by_one(sample: Sample, name: str) -> list[Sample]:
    """A sample for each picture."""
    pictures = tensor_of(sample, "pictures", name)
    if pictures is None:
        return [sample]
    return [replace(sample, image=picture, pictures=None) for picture in pictures]


def _aggregated(aggregate: str) -> Callable[[Tensor], Tensor]:
    if aggregate in AGGREGATES:
        return AGGREGATES[aggregate]
    percent = re.fullmatch(r"p([1-9]\d?)", str(aggregate))
    require("aggregate", aggregate, aggregate == "median" or percent, f"one of {SHOWN}", "try 'mean'")
    share = int(percent[1]) / 100 if percent else 0.5
    return lambda values: values.quantile(share)
