"""A policy against its base: the same prompts and seeds, and their scores.

Intervals are 95 % intervals over prompts, by Student's t widened for skew (`unirl_env.statistics`): the
samples of one prompt resemble each other, so it is the prompts that count as units, each with its mean over
samples. A difference to the base is taken sample by sample before that, since both drew under the same seed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import unirl_env.functional as F
from unirl_env.episode import EpisodeBatch
from unirl_env.run.record.samples import FPS
from unirl_env.statistics import mean_interval
from unirl_env.types import Prompt, Sample, Scorer, Scores

Values = Mapping[str, Sequence[float | None]]
MAIN, HELDOUT = "reward", "heldout"


@dataclass(frozen=True)
class Interval:
    """A mean and the bounds of its 95 % interval; NaN where there is nothing to average.

    Attributes:
        mean: Over what is there.
        low: The lower bound; NaN where a single number says nothing of how others would fall.
        high: The upper bound, likewise.
        failed: How many numbers are missing because the scorer failed: its main value is invalid there.
        absent: How many are missing though it did not: a part that does not apply, such as the place of an
            object in a prompt that names none.
        std: Standard deviation of the single samples.
    """

    mean: float
    low: float
    high: float
    failed: int = 0
    absent: int = 0
    std: float = math.nan

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.mean:.3f} [no interval]"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def row(self) -> dict[str, float | int | None]:
        """The interval as JSON, where null stands for a number that is none."""
        numbers = {"mean": self.mean, "std": self.std, "low": self.low, "high": self.high}
        known = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        return known | {"failed": self.failed, "absent": self.absent}


@dataclass
class Evaluator:
    """Fixed prompts and seeds, asked again whenever one wants to know where the policy stands.

    Args:
        agent: Anything with `rollout_eval`, and `drift` where that is measured.
        sets: Prompts by the name of their set.
        samples: Samples per prompt.
        num_steps: Denoising steps; None takes the environment's own number.
        heldout: A scorer that training never sees.
        seed: Key of the initial noise, the same for all runs that are to be compared.
        drift: Whether to measure on the last set how far the policy is from its base, too.
        fps: Frames per second of the clips that the agent makes, where it makes any.
    """

    agent: Any
    sets: Mapping[str, Sequence[Prompt]]
    samples: int
    num_steps: int | None = None
    heldout: Scorer | None = None
    seed: int = 0
    drift: bool = False
    fps: float = FPS

    def measure(
        self, name: str, iteration: int, base: bool, reference: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], tuple[Sample, ...]]:
        """Draw and score one set.

        Args:
            name: The set.
            iteration: Finished iterations, for the record.
            base: Measure the untrained model instead of the current one.
            reference: The base's row of the same set, for the paired difference.

        Returns:
            A row for `evaluation.jsonl`, and the samples; `drift` in the row is as `Drift.row` has it.
        """
        began = time.perf_counter()
        batch: EpisodeBatch = self.agent.rollout_eval(
            list(self.sets[name]),
            samples_per_prompt=self.samples,
            seed=F.derive_seed("evaluation", self.seed),
            num_steps=self.num_steps,
            base=base,
            keep_samples=True,
        )
        samples = batch.samples or ()
        values, faults = _values(MAIN, batch.scores), {MAIN: batch.scores.faults}
        if self.heldout is not None and samples:
            watched = score(self.heldout, samples, batch.prompts)
            values |= _values(HELDOUT, watched)
            faults[HELDOUT] = watched.faults
        row = summarize(values, self.samples)
        if any(faults.values()):
            row["faults"] = {name: list(said) for name, said in faults.items() if said}
        if reference is not None:
            row["difference"] = _differences(values, reference["values"], self.samples)
        if self.drift and not base and name == list(self.sets)[-1]:
            row["drift"] = self.agent.drift(
                list(self.sets[name]),
                samples_per_prompt=self.samples,
                seed=F.derive_seed("drift", self.seed),
            ).row()
        return {
            "iteration": iteration,
            "set": name,
            "prompts": [prompt.text for prompt in batch.prompts[:: self.samples]],
            "samples": self.samples,
            **row,
            "seconds": time.perf_counter() - began,
        }, samples


def score(scorer: Scorer, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
    """A scorer's judgement; its failure is counted, and does not stop a run that trains on another one."""
    from unirl_env.rewards.scoring import score_safely

    return score_safely(scorer, samples, prompts)


def summarize(values: Values, samples: int) -> dict[str, Any]:
    """The values with the interval of each mean, `samples` in a row for each prompt."""
    rewards = {}
    for name, part in values.items():
        rewards[name] = replace(interval(part, samples), **_missing(name, values)).row()
    return {"rewards": rewards, "values": {name: list(part) for name, part in values.items()}}


def nothing_valid(reward: Mapping[str, Any]) -> bool:
    """Whether an interval, as `Interval.row` has it, is one of failures alone."""
    return reward["mean"] is None and reward["failed"] > 0


def causes(faults: Sequence[str]) -> str:
    """What scorers said of their failures, as the end of a sentence."""
    if not faults:
        return "the scorer did not say why; try its own log, or a few samples by hand"
    return f"the last causes: {' | '.join(faults)}; try mending the scorer, or starting its service again"


def _differences(values: Values, base: Values, samples: int) -> dict[str, Any]:
    rows = {}
    for name in (name for name in values if name in base):
        found = difference(values[name], base[name], samples)
        rows[name] = replace(found, **_missing(name, values, base)).row()
    return rows


def _missing(name: str, *measured: Values) -> dict[str, int]:
    """How many numbers are missing in any of what was measured: with the main value, and without it."""
    failed, absent = set(), set()
    for values in measured:
        whole = values.get(name.partition("/")[0], values[name])
        for i, (part, main) in enumerate(zip(values[name], whole, strict=True)):
            if part is None:
                (failed if main is None else absent).add(i)
    return {"failed": len(failed), "absent": len(absent - failed)}


def interval(values: Sequence[float | None], samples: int) -> Interval:
    """Mean of the valid values, with the interval over prompts."""
    return _over_prompts(_as_array(values), samples)


def difference(values: Sequence[float | None], base: Sequence[float | None], samples: int) -> Interval:
    """Mean of the paired differences `values - base`, with the interval over prompts."""
    return _over_prompts(_as_array(values) - _as_array(base), samples)


def _as_array(values: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if v is None else v for v in values], dtype=float)


def _over_prompts(values: np.ndarray, samples: int) -> Interval:
    failed = int(np.isnan(values).sum())
    std = math.nan if failed == len(values) else float(np.nanstd(values))
    groups = values.reshape(-1, samples)
    groups = groups[~np.isnan(groups).all(axis=1)]
    if not len(groups):
        return Interval(math.nan, math.nan, math.nan, failed)
    # With one prompt there are only its samples to tell how far numbers lie apart.
    units = np.nanmean(groups, axis=1) if len(groups) > 1 else groups[0][~np.isnan(groups[0])]
    found = mean_interval(units)
    return Interval(found.estimate, found.low, found.high, failed, std=std)


def _values(name: str, scores: Scores) -> dict[str, list[float | None]]:
    columns: dict[str, Any] = {name: scores.value}
    columns |= {f"{name}/{part}": value for part, value in scores.parts.items()}
    return {
        key: [float(v) if math.isfinite(v) else None for v in column.tolist()]
        for key, column in columns.items()
    }
