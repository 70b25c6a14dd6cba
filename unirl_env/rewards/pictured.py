"""What a text is paid that never came to a picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unirl_env.arguments.values import is_number
from unirl_env.errors import ConfigError
from unirl_env.rewards.scoring import checked_scorer, is_pointwise, place_scores, score_safely
from unirl_env.types import Prompt, Sample, Scorer, Scores

__all__ = ["Pictured"]


class Pictured:
    """Another reward for the samples that have a picture, and a fixed one for those without.

    A model that writes before it draws can fail to draw: its text is empty, or ends too early. That is a
    result and no failure of the scorer, so it is paid, as `otherwise` says. A picture that is not finite is
    the generator's failure: its score is invalid.

    Its parts are `scorer`, with the parts of that one below it (NaN without a picture), and `pictured`, 1
    where there is a picture.

    Args:
        scorer: The reward of pictures; it never sees a sample without one.
        otherwise: The reward without a picture.

    Raises:
        ConfigError: If the scorer cannot be called, or `otherwise` is not a finite number.
    """

    wraps = ("scorer",)
    tolerates = ("image",)

    def __init__(self, scorer: Scorer, otherwise: float = 0.0, *, name: str = ""):
        self.scorer = checked_scorer(scorer)
        self.pointwise = is_pointwise(scorer)
        if not is_number(otherwise):
            raise ConfigError(f"`otherwise` must be a finite number, got {otherwise!r}; try 0.0.")
        self.otherwise = float(otherwise)
        self.name = name or "pictured"

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score the samples that have a picture."""
        there = torch.tensor([sample.image is not None for sample in samples], dtype=torch.bool)
        sound = torch.tensor([_is_sound(sample) for sample in samples], dtype=torch.bool)
        rows = sound.nonzero().flatten().tolist()
        judged = score_safely(self.scorer, [samples[row] for row in rows], [prompts[row] for row in rows])
        scores = place_scores(judged, sound)
        parts = {"scorer": scores.value, **{f"scorer/{name}": part for name, part in scores.parts.items()}}
        parts["pictured"] = there.float()
        return Scores(
            value=torch.where(there, scores.value, self.otherwise), parts=parts, valid=scores.valid | ~there
        )


def _is_sound(sample: Sample) -> bool:
    shown = [picture for picture in (sample.image, sample.pictures) if picture is not None]
    return sample.image is not None and all(bool(picture.isfinite().all()) for picture in shown)
