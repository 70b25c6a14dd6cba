"""What a service answers: scores as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unirl_env.errors import WireError
from unirl_env.types import Scores

__all__ = ["scores_as_json", "scores_from_json"]


def scores_as_json(scores: Scores) -> dict[str, Any]:
    """Scores as JSON: what is not finite is null, and float32 comes back as it was."""
    return {
        "value": _numbers(scores.value),
        "parts": {name: _numbers(part) for name, part in scores.parts.items()},
        "valid": scores.valid.tolist(),
    }


def scores_from_json(reply: Any, count: int) -> Scores:
    """What `scores_as_json` wrote about `count` samples.

    Raises:
        WireError: If it is malformed, of another length, or says that a score is valid and gives none.
    """
    if not isinstance(reply, Mapping) or not isinstance(reply.get("parts", {}), Mapping):
        raise WireError(f"Scores must be a mapping with `value`, `parts` and `valid`, got {reply!r:.80}.")
    value = _column(reply.get("value"), "value", count)
    valid = reply.get("valid")
    if not isinstance(valid, list) or [type(one) for one in valid] != [bool] * count:
        raise WireError(f"`valid` must be {count} truth values, got {valid!r:.80}.")
    parts = {str(name): _column(part, name, count) for name, part in reply.get("parts", {}).items()}
    scores = Scores(torch.tensor(value), {name: torch.tensor(part) for name, part in parts.items()})
    if bool((torch.tensor(valid) & ~scores.valid).any()):
        raise WireError("A valid score must be a finite number, got null.")
    return Scores(scores.value, scores.parts, torch.tensor(valid, dtype=torch.bool))


def _numbers(column: Tensor) -> list[float | None]:
    return [number if math.isfinite(number) else None for number in column.tolist()]


def _column(values: Any, name: str, count: int) -> list[float]:
    if not isinstance(values, list) or len(values) != count:
        raise WireError(f"`{name}` must be {count} numbers, got {values!r:.80}.")
    for one in values:
        if one is not None and (isinstance(one, bool) or not isinstance(one, int | float)):
            raise WireError(f"`{name}` must be numbers or null, got {one!r:.80}.")
    try:
        return [math.nan if one is None else float(one) for one in values]
    except OverflowError as error:
        raise WireError(f"`{name}` must be numbers of float32, got a larger one.") from error
