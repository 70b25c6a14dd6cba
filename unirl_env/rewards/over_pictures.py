"""One reward for several pictures of one text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unirl_env.errors import ConfigError
from unirl_env.rewards.scoring import checked_scorer, is_pointwise, score_safely
from unirl_env.types import Prompt, Sample, Scorer, Scores

__all__ = ["OverPictures", "over_several"]

AGGREGATES = {"mean": Tensor.mean, "max": Tensor.amax, "min": Tensor.amin}


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
        return over_several(self.scorer, single, prompts, AGGREGATES[self.aggregate])


def over_several(
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


def _one_by_one(sample: Sample) -> list[Sample]:
    """A sample for each picture."""
    if sample.pictures is None:
        return [sample]
    return [replace(sample, image=picture, pictures=None) for picture in sample.pictures]
