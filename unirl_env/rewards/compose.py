"""Rewards made of rewards.

A composition is a scorer itself, so compositions nest. Its parts keep their names: a part called `shapes`
contributes `shapes` and, below it, `shapes/colour`. A score that is invalid in any part that counts is
invalid in the whole, because a reward with a term missing is a different reward. A part that raises is
invalid like that, and the values of the other parts are still there to be read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from unirl_env.errors import ConfigError
from unirl_env.rewards.scoring import checked_scorer, is_pointwise, score_safely, scorer_name
from unirl_env.types import Prompt, Sample, Scorer, Scores

__all__ = ["Gate", "Minimum", "Product", "WeightedSum"]

Samples, Prompts = Sequence[Sample], Sequence[Prompt]


class WeightedSum:
    """`sum_i weight_i * part_i`.

    Args:
        parts: Name to `(scorer, weight)`, or a list of such pairs, which are named after their scorers. A
            part of weight 0 is watched only: it appears among the parts, and counts neither in the value nor
            in what is valid.

    Raises:
        ConfigError: If there are no parts, or names, scorers or weights cannot be used.
    """

    def __init__(
        self, parts: Mapping[str, tuple[Scorer, float]] | Sequence[tuple[Scorer, float]], name: str = ""
    ):
        pairs = list(parts.values()) if isinstance(parts, Mapping) else list(parts)
        for pair in pairs:
            if not isinstance(pair, Sequence) or len(pair) != 2:
                raise ConfigError(f"A part of a weighted sum must be (scorer, weight), got {pair!r}.")
            if not isinstance(pair[1], int | float) or not math.isfinite(pair[1]):
                raise ConfigError(f"A weight must be a finite number, got {pair[1]!r}.")
        names = parts if isinstance(parts, Mapping) else [scorer_name(scorer) for scorer, _ in pairs]
        self.parts = _named(names, [scorer for scorer, _ in pairs])
        self.weights = dict(zip(self.parts, (float(weight) for _, weight in pairs), strict=True))
        if not any(self.weights.values()):
            raise ConfigError("A weighted sum must have a weight other than 0, got none.")
        self.pointwise = is_pointwise(*self.parts.values())
        self.name = name or "weighted_sum"

    def __call__(self, samples: Samples, prompts: Prompts) -> Scores:
        """Score every sample by every part."""
        judged = _judged(self.parts, samples, prompts)
        counted = {name: weight for name, weight in self.weights.items() if weight}
        return Scores(
            value=sum(weight * judged[name].value for name, weight in counted.items()),
            parts=_nested(judged),
            valid=_all_valid([judged[name] for name in counted]),
        )


class Product:
    """`prod_i part_i`: every part must be good at once."""

    def __init__(self, parts: Mapping[str, Scorer] | Sequence[Scorer], name: str = ""):
        self.parts = _parts(parts)
        self.pointwise = is_pointwise(*self.parts.values())
        self.name = name or "product"

    def __call__(self, samples: Samples, prompts: Prompts) -> Scores:
        """Score every sample by every part."""
        judged = _judged(self.parts, samples, prompts)
        value = torch.stack([scores.value for scores in judged.values()]).prod(dim=0)
        return Scores(value=value, parts=_nested(judged), valid=_all_valid(judged.values()))


class Minimum:
    """`min_i part_i`: the worst part is the one to improve."""

    def __init__(self, parts: Mapping[str, Scorer] | Sequence[Scorer], name: str = ""):
        self.parts = _parts(parts)
        self.pointwise = is_pointwise(*self.parts.values())
        self.name = name or "minimum"

    def __call__(self, samples: Samples, prompts: Prompts) -> Scores:
        """Score every sample by every part."""
        judged = _judged(self.parts, samples, prompts)
        value = torch.stack([scores.value for scores in judged.values()]).amin(dim=0)
        return Scores(value=value, parts=_nested(judged), valid=_all_valid(judged.values()))


class Gate:
    """A reward that counts only where another one passes.

    The value is `scorer`'s where `gate >= threshold`, else `closed_value`. Both are asked about every sample.
    Its parts are `gate`, `scorer` and `open` (1 where the gate passes).

    Args:
        gate: The scorer that decides.
        scorer: The scorer whose value counts.
        threshold: The least value of `gate` that passes.
        closed_value: The value where the gate does not pass.

    Raises:
        ConfigError: If a scorer cannot be called or a number is not finite.
    """

    wraps = ("gate", "scorer")
    """The options that are scorers themselves."""

    def __init__(
        self, gate: Scorer, scorer: Scorer, threshold: float, closed_value: float = 0.0, name: str = ""
    ):
        self.parts = _named(["gate", "scorer"], [gate, scorer])
        for label, number in (("threshold", threshold), ("closed_value", closed_value)):
            if not isinstance(number, int | float) or not math.isfinite(number):
                raise ConfigError(f"`{label}` must be a finite number, got {number!r}.")
        self.threshold = float(threshold)
        self.closed_value = float(closed_value)
        self.pointwise = is_pointwise(*self.parts.values())
        self.name = name or "gate"

    def __call__(self, samples: Samples, prompts: Prompts) -> Scores:
        """Score every sample by the gate and by the scorer."""
        judged = _judged(self.parts, samples, prompts)
        passed = judged["gate"].value >= self.threshold
        share = torch.where(judged["gate"].valid, passed.float(), torch.nan)
        return Scores(
            value=torch.where(passed, judged["scorer"].value, self.closed_value),
            parts={**_nested(judged), "open": share},
            valid=_all_valid(judged.values()),
        )


def _parts(parts: Mapping[str, Scorer] | Sequence[Scorer]) -> dict[str, Scorer]:
    if isinstance(parts, Mapping):
        return _named(list(parts), list(parts.values()))
    return _named([scorer_name(scorer) for scorer in parts], list(parts))


def _named(names: Sequence[str] | Mapping[str, object], scorers: Sequence[Scorer]) -> dict[str, Scorer]:
    names = list(names)
    if not names:
        raise ConfigError("A composed reward must have at least one part, got none.")
    for name, scorer in zip(names, scorers, strict=True):
        checked_scorer(scorer, f"Part `{name}`")
        if not isinstance(name, str) or not name or "/" in name:
            raise ConfigError(f"A part's name must be a text without '/', got {name!r}.")
    if len(set(names)) < len(names):
        raise ConfigError(f"Parts must have different names, got {names}; try a mapping of your own names.")
    return dict(zip(names, scorers, strict=True))


def _judged(parts: Mapping[str, Scorer], samples: Samples, prompts: Prompts) -> dict[str, Scores]:
    return {name: score_safely(scorer, samples, prompts) for name, scorer in parts.items()}


def _nested(judged: Mapping[str, Scores]) -> dict[str, Tensor]:
    parts = {}
    for name, scores in judged.items():
        parts[name] = scores.value
        parts.update({f"{name}/{inner}": value for inner, value in scores.parts.items()})
    return parts


def _all_valid(judged: Sequence[Scores]) -> Tensor:
    return torch.stack([scores.valid for scores in judged]).all(dim=0)
