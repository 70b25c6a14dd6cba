"""Rewards made of rewards.

A composition is a scorer itself, so compositions nest. Its parts keep their names: a part called `shapes`
contributes `shapes` and, below it, `shapes/colour`. A score that is invalid in any part that counts is
invalid in the whole, because a reward with a term missing is a different reward. A part that raises is
invalid like that, and the values of the other parts are still there to be read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias

import torch
from torch import Tensor

from unirl_env.arguments.values import is_number, require
from unirl_env.errors import ConfigError
from unirl_env.rewards.inputs import tensor_of
from unirl_env.rewards.scoring import (
    PendingScores,
    checked_scorer,
    is_pointwise,
    place_scores,
    score_safely,
    scorer_name,
)
from unirl_env.types import Prompt, Sample, Scorer, Scores

Samples: TypeAlias = Sequence[Sample]
Prompts: TypeAlias = Sequence[Prompt]


class ScorerWrapper:
    """What rewards around another one share.

    Args:
        scorer: The other one, whose value is the part `scorer`, with that one's parts below it.
        name: What logs call it; by default as configurations do.

    Raises:
        ConfigError: If the scorer cannot be called.
    """

    wraps: tuple[str, ...] = ("scorer",)
    """The options that are scorers themselves."""
    NAME = ""

    def __init__(self, scorer: Scorer, name: str = ""):
        self.scorer = checked_scorer(scorer)
        self.pointwise = is_pointwise(scorer)
        self.name = name or self.NAME


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
            value=sum((weight * judged[name].value for name, weight in counted.items()), torch.zeros(())),
            parts=nested_parts(judged),
            valid=_all_valid([judged[name] for name in counted]),
        )


class _Reduced:
    """One number of all parts.

    Args:
        parts: Name to scorer, or a list of scorers, which keep their own names.
    """

    NAME: str
    REDUCE: Callable[..., Tensor]

    def __init__(self, parts: Mapping[str, Scorer] | Sequence[Scorer], name: str = ""):
        names = parts if isinstance(parts, Mapping) else [scorer_name(scorer) for scorer in parts]
        self.parts = _named(names, list(parts.values() if isinstance(parts, Mapping) else parts))
        self.pointwise = is_pointwise(*self.parts.values())
        self.name = name or self.NAME

    def __call__(self, samples: Samples, prompts: Prompts) -> Scores:
        """Score every sample by every part."""
        judged = _judged(self.parts, samples, prompts)
        value = type(self).REDUCE(torch.stack([scores.value for scores in judged.values()]), dim=0)
        return Scores(value=value, parts=nested_parts(judged), valid=_all_valid(judged.values()))


class Product(_Reduced):
    """`prod_i part_i`: every part must be good at once."""

    NAME, REDUCE = "product", torch.prod


class Minimum(_Reduced):
    """`min_i part_i`: the worst part is the one to improve."""

    NAME, REDUCE = "minimum", torch.amin


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

    def __init__(
        self, gate: Scorer, scorer: Scorer, threshold: float, closed_value: float = 0.0, name: str = ""
    ):
        self.parts = _named(["gate", "scorer"], [gate, scorer])
        for label, number in (("threshold", threshold), ("closed_value", closed_value)):
            if not isinstance(number, int | float) or not math.isfinite(number):
                raise ConfigError(f"`{label}` must be a finite number, got {number!r}.")
        self.threshold, self.closed_value = float(threshold), float(closed_value)
        self.pointwise = is_pointwise(*self.parts.values())
        self.name = name or "gate"

    def __call__(self, samples: Samples, prompts: Prompts) -> Scores:
        """Score every sample by the gate and by the scorer."""
        judged = _judged(self.parts, samples, prompts)
        passed = judged["gate"].value >= self.threshold
        share = torch.where(judged["gate"].valid, passed.float(), torch.nan)
        return Scores(
            value=torch.where(passed, judged["scorer"].value, self.closed_value),
            parts={**nested_parts(judged), "open": share},
            valid=_all_valid(judged.values()),
        )


class Normalized(ScorerWrapper):
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

    NAME = "normalized"

    @staticmethod
    def check_with(**options: Any) -> None:
        """Refuse anything but one of the two pairs.

        Raises:
            ConfigError: Saying what to try.
        """
        given = {label for label in ("mean", "std", "low", "high") if options.get(label) is not None}
        if given not in ({"mean", "std"}, {"low", "high"}):
            raise ConfigError(
                "A scale must have either `mean` and `std` or `low` and `high`, got "
                f"{sorted(given) or 'none of them'}; try `low: 0, high: 100`."
            )

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
        super().__init__(scorer, name)
        ends = {"mean": mean, "std": std, "low": low, "high": high}
        self.check_with(**ends)
        given = {label: number for label, number in ends.items() if number is not None}
        for label, number in given.items():
            require(label, number, is_number(number), "a finite number")
        if std is not None and std <= 0:
            raise ConfigError(f"`std` must be positive, got {std}.")
        if low is not None and low == high:
            raise ConfigError(f"`low` and `high` must differ, got {low} twice.")
        self.offset = float(given["low"] if std is None else given["mean"])
        self.scale = float(given["high"]) - float(given["low"]) if std is None else float(std)
        self.clip = bool(clip) and low is not None

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score every sample by the scorer, and put the value on the scale."""
        scores = score_safely(self.scorer, samples, prompts)
        value = ((scores.value.double() - self.offset) / self.scale).float()
        return Scores(
            value=value.clamp(0, 1) if self.clip else value,
            parts=nested_parts({"scorer": scores}),
            valid=scores.valid,
        )


class Pictured(ScorerWrapper):
    """Another reward for the samples that have a picture, and a fixed one for those without.

    A model that writes before it draws can fail to draw: its text is empty, or ends too early. That is a
    result and no failure of the scorer, so it is paid, as `otherwise` says. A picture that is not finite is
    the generator's failure: its score is invalid. A clip is a picture here.

    Its parts are `scorer`, with the parts of that one below it (NaN without a picture), and `pictured`, 1
    where there is a picture.

    Args:
        scorer: The reward of pictures; it never sees a sample without one.
        otherwise: The reward without a picture.

    Raises:
        ConfigError: If the scorer cannot be called, or `otherwise` is not a finite number.
    """

    NAME = "pictured"
    tolerates = ("image", "video")

    def __init__(self, scorer: Scorer, otherwise: float = 0.0, *, name: str = ""):
        super().__init__(scorer, name)
        require("otherwise", otherwise, is_number(otherwise), "a finite number", "try 0.0")
        self.otherwise = float(otherwise)

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score the samples that have a picture.

        Raises:
            ContractError: If a picture is no tensor.
        """
        shown = [_shown(sample, self.name) for sample in samples]
        there = torch.tensor([bool(each) for each in shown], dtype=torch.bool)
        sound = torch.tensor(
            [bool(each) and all(bool(one.isfinite().all()) for one in each) for each in shown],
            dtype=torch.bool,
        )
        rows = sound.nonzero().flatten().tolist()
        judged = score_safely(self.scorer, [samples[row] for row in rows], [prompts[row] for row in rows])
        scores = place_scores(judged, sound)
        return Scores(
            value=torch.where(there, scores.value, self.otherwise),
            parts={**nested_parts({"scorer": scores}), "pictured": there.float()},
            valid=scores.valid | ~there,
        )


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


def nested_parts(judged: Mapping[str, Scores]) -> dict[str, Tensor]:
    """The parts of a composition: the value of each scorer, and its own parts below it."""
    parts = {}
    for name, scores in judged.items():
        parts[name] = scores.value
        parts.update({f"{name}/{inner}": value for inner, value in scores.parts.items()})
    return parts


def _all_valid(judged: Iterable[Scores]) -> Tensor:
    return torch.stack([scores.valid for scores in judged]).all(dim=0)


def _shown(sample: Sample, name: str) -> list[Tensor]:
    """What was drawn of a sample: a picture, with all others, or a clip."""
    found = (tensor_of(sample, field, name) for field in ("image", "pictures", "video"))
    return [each for each in found if each is not None]


class Background(ScorerWrapper):
    """Another scorer in a thread of its own, which is asked in the order of the questions.

    There is one thread, so that a scorer is never called twice at a time, and is called with the same batches
    in the same order as without it: the scores are the same. Worth it where scoring leaves the processor to
    others: a service, an external judge, a network on another device.

    Args:
        scorer: What judges.
    """

    def __init__(self, scorer: Scorer):
        super().__init__(scorer, scorer_name(scorer))
        self._thread: ThreadPoolExecutor | None = None

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score at once, in the caller's own thread."""
        return self.scorer(samples, prompts)

    def begin(self, judge: Callable[..., Scores], *arguments: Any) -> PendingScores:
        """Start `judge(*arguments)` once everything that was begun before has ended."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"reward-{self.name}")
        future: Future[Scores] = self._thread.submit(judge, *arguments)
        return PendingScores(future.result, future.done)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_thread": None}
