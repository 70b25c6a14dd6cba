"""The boundary around a scorer: its failures become data, its broken contracts become errors."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from unirl_env.errors import ConfigError, ContractError, ScorerError, ServiceLost, UnirlError
from unirl_env.rewards.faults import gathered_faults, note_fault
from unirl_env.types import Prompt, Sample, Scorer, Scores

__all__ = ["checked_scorer", "is_pointwise", "place_scores", "score_safely", "scorer_name"]

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
