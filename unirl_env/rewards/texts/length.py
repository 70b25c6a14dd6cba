"""A reward of how long a text is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch

from unirl_env.arguments.values import require
from unirl_env.errors import ConfigError, ContractError
from unirl_env.rewards.texts.text_answers import answer_text
from unirl_env.types import Prompt, Sample, Scores

UNITS = ("tokens", "characters")


class LengthScorer:
    """1 at the best length, falling in a straight line to 0.

    Either `linear` between two lengths, or `target`, which falls to both sides:

    * `linear=(100, 500)`: 1 up to 100, 0 from 500 on. The other way round, `(500, 100)`, longer is better.
    * `target=300, width=200`: `max(0, 1 - |length - 300| / 200)`.

    The length itself is the part `length`.

    Args:
        linear: The length that scores 1, and the one that scores 0.
        target: The best length.
        width: How far from `target` the score is 0; by default `target`, so that an empty text has 0.
        unit: What is counted, `"tokens"` (all after the prompt) or `"characters"` (of the text).

    Raises:
        ConfigError: If not exactly one of `linear` and `target` is given, or a number is out of range.
    """

    name = "length"
    needs = ("text",)
    pointwise = True

    @staticmethod
    def check_with(
        linear: Sequence[float] | None = None, target: float | None = None, **options: Any
    ) -> None:
        """Refuse both and neither.

        Raises:
            ConfigError: Saying what to try.
        """
        if (linear is None) == (target is None):
            raise ConfigError(
                f"A length reward must have one of `linear` and `target`, got {linear!r} and {target!r}; "
                f"try `linear: [100, 500]`."
            )

    def __init__(
        self,
        *,
        linear: Sequence[float] | None = None,
        target: float | None = None,
        width: float | None = None,
        unit: str = "tokens",
    ):
        require("unit", unit, unit in UNITS, f"one of {list(UNITS)}")
        self.check_with(linear, target)
        if linear is not None and (
            isinstance(linear, str)
            or len(linear) != 2
            or not all(_is_length(number) for number in linear)
            or linear[0] == linear[1]
        ):
            raise ConfigError(f"`linear` must be two different lengths from 0 on, got {linear!r}.")
        if target is None and width is not None:
            raise ConfigError(f"`width` must come with `target`, got {width!r} without.")
        width = target if width is None else width
        if target is not None and not (_is_length(target) and _is_length(width) and width > 0):
            raise ConfigError(
                f"`target` must be a length from 0 on and `width` a positive one, got {target!r} and "
                f"{width!r}."
            )
        self.linear, self.target, self.width, self.unit = linear, target, width, unit

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score the length of every sample.

        Raises:
            ContractError: If a sample has no text, or no tokens where they are counted.
        """
        counts = [
            sample_tokens(sample, self.name) if self.unit == "tokens" else len(answer_text(sample, self.name))
            for sample in samples
        ]
        length = torch.tensor(counts, dtype=torch.float32)
        if self.linear is not None:
            best, worst = self.linear
            value = (length - worst) / (best - worst)
        else:
            assert self.target is not None and self.width is not None  # there without `linear`
            value = 1 - (length - self.target).abs() / self.width
        return Scores(value.clamp(0, 1), {"length": length})


def sample_tokens(sample: Sample, name: str) -> int:
    """How many tokens follow the prompt.

    Raises:
        ContractError: If the sample has none at all.
    """
    if sample.tokens is None:
        raise ContractError(
            f"`Sample.tokens` must be the tokens after the prompt for the reward `{name}`, got None; "
            f"try counting characters, or a mode that writes tokens."
        )
    return len(sample.tokens)


def _is_length(number: Any) -> TypeGuard[float]:
    return isinstance(number, int | float) and math.isfinite(number) and number >= 0
