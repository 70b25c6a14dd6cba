"""What a server says when it does not do what was asked, and when it wants to be asked again."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

__all__ = ["PASSING", "THIS_REQUEST", "retry_after", "words_of"]

PASSING = {408, 425, 429}
"""Statuses that a later attempt may not meet; so are all from 500 on."""
THIS_REQUEST = {400, 413, 422}
"""Statuses that may concern one request only: too long a text, a picture that a filter does not let pass."""


def retry_after(header: str | None) -> float:
    """Seconds, from a number or a date."""
    try:
        seconds = float(header or 0)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def words_of(data: bytes) -> str:
    """What a server says of an error: under several names, in an object or as a text."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return data.decode(errors="replace")
    for name in ("error", "message", "detail"):
        if isinstance(content, Mapping) and content.get(name):
            content = content[name]
    return str(content)
