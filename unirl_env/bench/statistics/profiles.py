"""Performance profiles: which share of runs reaches a score, for every score.

Reference:
    Agarwal et al., Deep RL at the edge of the statistical precipice, NeurIPS 2021, section 4.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from unirl_env.bench.statistics.shares import exact_bounds
from unirl_env.statistics.given import Array, by_task, numbers, proper_level


def performance_profile(
    scores: Mapping[str, Sequence[float] | Array],
    thresholds: Sequence[float] | Array,
    level: float = 0.95,
) -> tuple[Array, Array, Array]:
    """The share of runs whose score lies above each threshold, the mean over tasks, with a pointwise band.

    Pointwise: at each threshold by itself the band holds the truth as often as the level says; that it does
    so at all of them together is less likely. One seed per task is enough: the runs of all tasks count.

    Args:
        scores: Task to the scores of its seeds.
        thresholds: Scores to reach [k].
        level: How often the band of one threshold is to hold the truth.

    Returns:
        The share, the lower and the upper bound, [k] each.

    Raises:
        ShapeError: If there is no task, one without seeds, or no threshold.
        ConfigError: If a number is not finite, or the level is none.
    """
    runs = [seeds for _, seeds in sorted(by_task(scores, "scores").items())]
    marks = numbers(thresholds, "thresholds")
    proper_level(level)
    share = np.mean([(seeds[:, None] > marks).mean(0) for seeds in runs], axis=0)
    # As many runs as would vary as much: all of them, where each task has the same number.
    count = len(runs) ** 2 / sum(1 / len(seeds) for seeds in runs)
    return share, *exact_bounds(share, count, level)
