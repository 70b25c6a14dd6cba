"""Scores as numbers of an iteration: of the reward that is trained on, and of the one that watches."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unirl_env.arguments.values import is_number
from unirl_env.episode import EpisodeBatch
from unirl_env.rewards.scoring import score_safely
from unirl_env.types import Scorer, Scores

__all__ = ["HELDOUT", "heldout_metrics", "is_due", "nothing_scored", "score_metrics"]

HELDOUT = "heldout"


def score_metrics(name: str, scores: Scores) -> dict[str, float]:
    """The numbers of a batch of scores under `name`; NaN where there is nothing to average.

    Args:
        name: What the scores are: `reward` or `heldout`.
        scores: B scores.

    Returns:
        `<name>` and `<name>_std`, over valid scores; `<name>/failed`, how many are invalid. Of each part,
        `<name>/<part>` and `<name>_std/<part>`, over the values that it has; `<name>_failed/<part>`, how many
        it lacks where the whole is invalid, too, and `<name>_absent/<part>`, how many it lacks where the
        whole is valid: there the part does not apply, or is only watched and failed.
    """
    value, valid = scores.value[scores.valid], scores.valid
    found = {name: _mean(value), f"{name}_std": _std(value), f"{name}/failed": float((~valid).sum())}
    for part, values in scores.parts.items():
        known = torch.isfinite(values)
        found[f"{name}/{part}"] = _mean(values[known])
        found[f"{name}_std/{part}"] = _std(values[known])
        found[f"{name}_failed/{part}"] = float((~known & ~valid).sum())
        found[f"{name}_absent/{part}"] = float((~known & valid).sum())
    return found


def heldout_metrics(scorer: Scorer, batch: EpisodeBatch) -> dict[str, float]:
    """What a scorer that is never trained on says of the very samples of an iteration.

    Args:
        scorer: The held-out scorer; its failures are counted and stop nothing.
        batch: The iteration's episodes with their samples.

    Returns:
        `score_metrics` under `heldout`, and `seconds/heldout`; nothing where no samples were kept.
    """
    if not batch.samples:
        return {}
    began = time.perf_counter()
    found = score_metrics(HELDOUT, score_safely(scorer, batch.samples, batch.prompts))
    return found | {"seconds/heldout": time.perf_counter() - began}


def nothing_scored(row: Mapping[str, Any]) -> bool:
    """Whether an iteration of these numbers had episodes, and no valid score of any."""
    failed = row.get("reward/failed")
    return not is_number(row.get("reward")) and is_number(failed) and failed > 0


def is_due(iteration: int, every: int) -> bool:
    """Whether an iteration, counted from 1, is one of those that are scored: the first, and every `every`."""
    return every > 0 and (iteration - 1) % every == 0


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _std(values: Tensor) -> float:
    return float(values.std(unbiased=False)) if len(values) else float("nan")
