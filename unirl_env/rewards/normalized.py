"""Another reward on a declared scale, so that several of them can be added."""

from __future__ import annotations

from collections.abc import Sequence

from unirl_env.arguments.values import is_number
from unirl_env.errors import ConfigError
from unirl_env.rewards.scoring import checked_scorer, is_pointwise, score_safely
from unirl_env.types import Prompt, Sample, Scorer, Scores

__all__ = ["Normalized"]


class Normalized:
    """`(x - mean) / std`, or `(x - low) / (high - low)` clipped to [0, 1].

    The numbers are declared and never learned from what is scored: a score means the same in every batch, in
    every process and after a resume. Typical ones are told by an evaluation of the untrained policy.

    Its parts are `scorer`, the value as it was, with the parts of that one below it.

    Args:
        scorer: The reward that is put on another scale.
        mean: What becomes 0; comes with `std`.
        std: How far from `mean` is 1; positive.
        low: What becomes 0; comes with `high`. Above `high`, the scale is turned around.
        high: What becomes 1.
        clip: Cut off what lies outside of `low` and `high`; a scale of `mean` and `std` has no ends.

    Raises:
        ConfigError: If the scorer cannot be called, or the numbers are not exactly one of the two pairs.
    """

    wraps = ("scorer",)

    def __init__(
        self,
        scorer: Scorer,
        *,
        mean: float | None = None,
        std: float | None = None,
        low: float | None = None,
        high: float | None = None,
        clip: bool = True,
        name: str = "",
    ):
        self.scorer = checked_scorer(scorer)
        self.pointwise = is_pointwise(scorer)
        given = {
            label: number
            for label, number in (("mean", mean), ("std", std), ("low", low), ("high", high))
            if number is not None
        }
        for label, number in given.items():
            if not is_number(number):
                raise ConfigError(f"`{label}` must be a finite number, got {number!r}.")
        if set(given) not in ({"mean", "std"}, {"low", "high"}):
            raise ConfigError(
                "A scale must have either `mean` and `std` or `low` and `high`, got "
                f"{sorted(given) or 'none of them'}; try `low: 0, high: 100`."
            )
        if std is not None and std <= 0:
            raise ConfigError(f"`std` must be positive, got {std}.")
        if low is not None and low == high:
            raise ConfigError(f"`low` and `high` must differ, got {low} twice.")
        self.offset = float(given.get("mean", given.get("low")))
        self.scale = float(std) if std is not None else float(high) - float(low)
        self.clip = bool(clip) and low is not None
        self.name = name or "normalized"

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score every sample by the scorer, and put the value on the scale."""
        scores = score_safely(self.scorer, samples, prompts)
        value = ((scores.value.double() - self.offset) / self.scale).float()
        return Scores(
            value=value.clamp(0, 1) if self.clip else value,
            parts={"scorer": scores.value, **{f"scorer/{name}": part for name, part in scores.parts.items()}},
            valid=scores.valid,
        )
