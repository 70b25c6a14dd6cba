"""The boundary around a scorer: its failures become data, its broken contracts become errors.

Why scores are invalid is gathered for whoever asked the scorers, and said in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from unirl_env.errors import ConfigError, ContractError, ScorerError, ServiceLost, UnirlError
from unirl_env.types import FAULTS, Prompt, Sample, Scorer, Scores

LONGEST = 500
"""Characters of one cause."""
REMEMBERED = 10_000
"""Warnings; a service that runs for months forgets the first ones, and may say them again."""

_gathered: ContextVar[dict[str, None] | None] = ContextVar("faults", default=None)


@contextmanager
def gathered_faults() -> Iterator[dict[str, None]]:
    """Gather what is noted inside, each once and the last ones; also for whoever gathers around it."""
    outer = _gathered.get()
    own: dict[str, None] = {}
    before = _gathered.set(own)
    try:
        yield own
    finally:
        _gathered.reset(before)
        if outer is not None:
            _keep(outer, *own)


def note_fault(cause: str) -> None:
    """Say why scores are invalid; nothing where nobody gathers."""
    found = _gathered.get()
    if found is not None:
        _keep(found, cause if len(cause) <= LONGEST else f"{cause[:LONGEST]}...")


class PromptFaults:
    """Warnings of prompts that cannot be judged, which name the prompt and the cause, each of them once.

    Args:
        scorer: The name of the scorer that cannot judge.
    """

    def __init__(self, scorer: str):
        self.scorer = scorer
        self._logged: dict[tuple[str, str], None] = {}

    def __call__(self, prompt: Prompt, why: str) -> None:
        """Say that samples of `prompt` are invalid, and why."""
        note_fault(f"{self.scorer}: it cannot judge the prompt {prompt.id[:80]!r}: {why}")
        known = (prompt.id[:80], why[:80])
        if known in self._logged:
            return
        if len(self._logged) >= REMEMBERED:
            del self._logged[next(iter(self._logged))]
        self._logged[known] = None
        logger.warning("Reward `%s` cannot judge the prompt %r: %s.", self.scorer, known[0], why)


def _keep(found: dict[str, None], *causes: str) -> None:
    for cause in causes:
        found.pop(cause, None)
        found[cause] = None
    while len(found) > FAULTS:
        del found[next(iter(found))]


logger = logging.getLogger(__name__)


def scorer_name(scorer: Scorer) -> str:
    """What logs and errors call `scorer`: its `name`, else the name of the function or class."""
    return getattr(scorer, "name", None) or getattr(scorer, "__name__", None) or type(scorer).__name__


def is_pointwise(*scorers: Scorer) -> bool:
    """Whether all of them declare that each score depends on its own sample and prompt alone."""
    return all(getattr(scorer, "pointwise", False) for scorer in scorers)


def checked_scorer(scorer: Any, label: str = "`scorer`") -> Scorer:
    """`scorer` itself.

    Raises:
        ConfigError: If it cannot be called, or is a class instead of an object.
    """
    if isinstance(scorer, type):
        raise ConfigError(
            f"{label} must be an object, got the class {scorer.__name__}; try {scorer.__name__}()."
        )
    if not callable(scorer):
        raise ConfigError(f"{label} must be callable as (samples, prompts), got {type(scorer).__name__}.")
    return scorer


def score_safely(
    scorer: Scorer,
    samples: Sequence[Sample],
    prompts: Sequence[Prompt],
    *,
    on_error: Literal["invalid", "raise"] = "invalid",
) -> Scores:
    """Score `samples` `[B]` against `prompts` `[B]`, and turn what goes wrong into what it is.

    A scorer that raises has failed: its scores are invalid (NaN, never zero), and a warning names it and the
    cause. A scorer with `pointwise = True` declares that each score depends on its own sample alone; it is
    then asked again one sample at a time, so that only the samples at fault are invalid, unless it says by
    `ServiceLost` that this is in vain. This library's own errors, except `ScorerError`, say that something is
    set up wrongly (a missing model or extra, samples without a picture) and pass through: no later batch
    would fare better.

    Args:
        scorer: What judges.
        samples: The finished samples.
        prompts: The prompt of each sample.
        on_error: `"invalid"` counts failures as above; `"raise"` stops at the first.

    Returns:
        B scores; none of them if there are no samples, and then the scorer is not called. Where some are
        invalid, `faults` has what was said of it.

    Raises:
        ContractError: If the scorer returns anything but `Scores` of length B, or B prompts are not given.
        ScorerError: If the scorer raises and `on_error` is `"raise"`.
    """
    if len(samples) != len(prompts):
        raise ContractError(
            f"`prompts` must hold one prompt per sample, got {len(prompts)} for {len(samples)} samples."
        )
    if not len(samples):
        return Scores.failed(0)
    with gathered_faults() as faults:
        scores = _scored(scorer, samples, prompts, on_error)
    if not faults or bool(scores.valid.all()):
        return scores
    return replace(scores, faults=tuple(faults))


def _scored(scorer: Scorer, samples: Sequence[Sample], prompts: Sequence[Prompt], on_error: str) -> Scores:
    try:
        return _called(scorer, samples, prompts)
    except Exception as error:
        if isinstance(error, UnirlError) and not isinstance(error, ScorerError):
            raise
        if on_error == "raise":
            raise ScorerError(
                f"Scorer `{scorer_name(scorer)}` must score {len(samples)} samples, "
                f"got {type(error).__name__}: {error}"
            ) from error
        if is_pointwise(scorer) and len(samples) > 1 and not isinstance(error, ServiceLost):
            rows = zip(samples, prompts, strict=True)
            return Scores.cat(score_safely(scorer, [sample], [prompt]) for sample, prompt in rows)
        note_fault(f"{scorer_name(scorer)}: {type(error).__name__}: {error}")
        logger.warning(
            "Scorer `%s` failed on %d samples, which count as invalid: %s: %s",
            scorer_name(scorer),
            len(samples),
            type(error).__name__,
            error,
        )
        return Scores.failed(len(samples))


def _called(scorer: Scorer, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
    scores = scorer(samples, prompts)
    if not isinstance(scores, Scores):
        raise ContractError(
            f"Scorer `{scorer_name(scorer)}` must return Scores, got {type(scores).__name__}; "
            f"try `Scores(value=...)`."
        )
    if len(scores) != len(samples):
        raise ContractError(
            f"Scorer `{scorer_name(scorer)}` must return one score per sample, "
            f"got {len(scores)} for {len(samples)} samples."
        )
    return scores


def place_scores(scores: Scores, mask: Tensor) -> Scores:
    """`scores` at the true places of `mask` `[B]`, in order; NaN and invalid everywhere else."""
    index = torch.nonzero(mask).flatten()
    if len(index) != len(scores):
        raise ContractError(f"`mask` must have {len(scores)} true places, got {len(index)}.")

    def spread(rows: Tensor) -> Tensor:
        return torch.full(mask.shape, torch.nan).index_copy(0, index, rows)

    valid = torch.zeros_like(mask).index_copy(0, index, scores.valid)
    return Scores(
        value=spread(scores.value),
        parts={name: spread(part) for name, part in scores.parts.items()},
        valid=valid,
        faults=scores.faults,
    )


class PendingScores:
    """A judgement that is on its way.

    Args:
        ask: Waits for the judgement and returns it.
        done: Whether it is there; by default it is not known.
    """

    def __init__(self, ask: Callable[[], Scores], done: Callable[[], bool] = lambda: False):
        self._ask, self._done = ask, done

    def done(self) -> bool:
        """Whether the scores are known to be there, or to have failed."""
        return self._done()

    def result(self) -> Scores:
        """The scores; waits for them, and raises what the scorer raised."""
        return self._ask()


def settled(scores: Scores | PendingScores) -> Scores:
    """The scores themselves, waited for if they are on their way."""
    return scores.result() if isinstance(scores, PendingScores) else scores
