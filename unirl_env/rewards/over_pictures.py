"""One reward for several pictures of one text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unirl_env.errors import ConfigError
from unirl_env.rewards.scoring import checked_scorer, is_pointwise, score_safely
from unirl_env.types import Prompt, Sample, Scorer, Scores

__all__ = ["OverPictures"]

AGGREGATES = ("mean", "max", "min")


class OverPictures:
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

    wraps = ("scorer",)

    def __init__(self, scorer: Scorer, aggregate: str = "mean", *, name: str = ""):
        self.scorer = checked_scorer(scorer)
        self.pointwise = is_pointwise(scorer)
        if aggregate not in AGGREGATES:
            raise ConfigError(f"`aggregate` must be one of {list(AGGREGATES)}, got {aggregate!r}.")
        self.aggregate = aggregate
        self.name = name or "over_pictures"

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score every picture of every sample."""
        single = [_one_by_one(sample) for sample in samples]
        counts = [len(several) for several in single]
        scores = score_safely(
            self.scorer,
            [sample for several in single for sample in several],
            [prompt for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)],
        )
        values = scores.value.split(counts)
        mean, best, worst = (
            torch.stack([reduce(own) for own in values]) for reduce in (Tensor.mean, Tensor.amax, Tensor.amin)
        )
        parts = {
            f"scorer/{name}": torch.stack([own.nanmean() for own in part.split(counts)])
            for name, part in scores.parts.items()
        }
        return Scores(
            value={"mean": mean, "max": best, "min": worst}[self.aggregate],
            parts={"scorer": mean, "best": best, "worst": worst, **parts},
            valid=torch.stack([own.all() for own in scores.valid.split(counts)]),
        )


def _one_by_one(sample: Sample) -> list[Sample]:
    """A sample for each picture."""
    if sample.pictures is None:
        return [sample]
    return [replace(sample, image=picture, pictures=None) for picture in sample.pictures]
