"""JSON from strangers: no deeper, longer or stranger than what a request needs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from unirl_env.errors import WireError

__all__ = ["read_words"]

DEEPEST = 64
"""Lists and mappings inside each other; whoever walks them by recursion must come to the end."""


def read_words(data: bytes, most: int) -> Any:
    """JSON in UTF-8, of finite numbers.

    Args:
        data: The text.
        most: Its most bytes.

    Raises:
        WireError: If it is longer or deeper than it may be, or holds NaN or an infinity.
        ValueError: If it is no JSON at all; also as `RecursionError`, where it is very deep.
    """
    if len(data) > most:
        raise WireError(f"The JSON of a request must have at most {most} bytes, got {len(data)}.")
    found = json.loads(data.decode())
    level = [found]
    for _ in range(DEEPEST):
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return found
    raise WireError(f"The JSON of a request must have at most {DEEPEST} levels, got more.")


def _inside(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [*value, *value.values()]
    if isinstance(value, list):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise WireError(f"A number must be finite in a request, got {value}; try null.")
    return []
