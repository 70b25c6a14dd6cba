"""How many replicas of the reward service there are, and what each of them takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from unirl_env.errors import ConfigError

__all__ = ["Replicas", "replicas_of"]


class Replicas(BaseModel):
    """How many replicas there are, and what each of them takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    replicas: PositiveInt | None = None
    """How many, where the number is fixed; 1 if nothing is said."""
    min_replicas: int | None = Field(None, ge=0)
    """The fewest, where Serve follows the load; 0 lets all of them end while nobody asks."""
    max_replicas: PositiveInt | None = None
    """The most, where Serve follows the load."""
    target_ongoing_requests: PositiveFloat = 16.0
    """Requests per replica that Serve aims at: more replicas above, fewer below."""
    gpus_per_replica: float = Field(0.0, ge=0)
    """Of a GPU; fractions share one, whose memory must hold all of them."""
    cpus_per_replica: float = Field(1.0, ge=0)
    """Cores that Ray reserves, and threads with which a scorer computes on them."""
    max_ongoing_requests: PositiveInt = 256
    """Requests that one replica has at once, which must fill its batches: Serve's own default is 5."""
    max_queued_requests: PositiveInt = 1024
    """Requests that wait at one door for a replica; what comes then is told to come again (429)."""

    @property
    def follows_load(self) -> bool:
        """Whether Serve changes their number."""
        return self.min_replicas is not None or self.max_replicas is not None


def replicas_of(values: Mapping[str, Any]) -> Replicas:
    """`Replicas` from words.

    Raises:
        ConfigError: If they are unknown, out of range, or contradict each other.
    """
    try:
        replicas = Replicas.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"`{field}` must be one of the settings {list(Replicas.model_fields)} and in range, got "
            f"{first['input']!r}: {first['msg']}."
        ) from error
    if replicas.follows_load and replicas.replicas is not None:
        raise ConfigError(
            f"`replicas` must not be given together with `min_replicas` or `max_replicas`, got "
            f"{replicas.replicas}; try one of them."
        )
    if replicas.follows_load and (replicas.min_replicas or 0) > (replicas.max_replicas or math.inf):
        raise ConfigError(
            f"`max_replicas` must be at least `min_replicas`, got {replicas.max_replicas} and "
            f"{replicas.min_replicas}."
        )
    if replicas.gpus_per_replica > 1 and replicas.gpus_per_replica % 1:
        raise ConfigError(
            f"`gpus_per_replica` must be whole above 1, got {replicas.gpus_per_replica}; "
            f"try {math.ceil(replicas.gpus_per_replica)}."
        )
    return replicas
