"""How likely a run of one agent is to beat a run of another one in the same task.

Per task it is Mann and Whitney's statistic as a share of all pairs of runs, ties counting half; over tasks
it is the mean. The runs are not paired: it answers what happens with a seed that neither has seen.

The variance is that of the placements of each run among the other agent's (DeLong), with Satterthwaite's
degrees of freedom. Near 0 and 1 it is too small, and at 0 and 1 itself it is zero. Hence the bounds are
those of a share (Wilson) among as many units as the variance says, and at most as many as it would say were
there no difference: `3 n m / (n + m + 1)` per task.

Reference:
    Agarwal et al., Deep RL at the edge of the statistical precipice, NeurIPS 2021, section 4.3.
    DeLong, DeLong & Clarke-Pearson, Biometrics 44 (1988), 837-845.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from unirl_env.bench.statistics.shares import score_bounds
from unirl_env.statistics import Interval
from unirl_env.statistics.given import Array, by_task, proper_level, same_tasks
from unirl_env.statistics.interval import measured
from unirl_env.statistics.studentised import combined, moments_of_mean

METHOD = "Wilson's interval of a share, by the variance of placements"
NOTHING = "a task of one seed: no interval"


def probability_of_improvement(
    x: Mapping[str, Sequence[float] | Array], y: Mapping[str, Sequence[float] | Array], level: float = 0.95
) -> Interval:
    """P(x > y) + P(x = y) / 2, the mean over tasks, with its interval over seeds.

    Args:
        x: Task to the scores of its seeds [n].
        y: The other agent's; the numbers of seeds may differ.
        level: How often the interval is to hold the truth.

    Raises:
        ShapeError: If there is no task, or one without seeds.
        ConfigError: If a task is missing on one side, a score is not finite, or the level is none.
    """
    first, second = by_task(x, "x"), by_task(y, "y")
    same_tasks(first, second, ("x", "y"))
    proper_level(level)
    tasks = sorted(first)
    pairs = [(first[task][:, None], second[task][:, None]) for task in tasks]
    share, low, high = improvement(pairs, level)
    known = not math.isnan(low[0])
    return Interval(
        float(share[0]),
        float(low[0]),
        float(high[0]),
        level,
        METHOD if known else NOTHING,
        **(measured("improvement", level) if known else {}),
    )


def improvement(pairs: Sequence[tuple[Array, Array]], level: float) -> tuple[Array, Array, Array]:
    """The share and its bounds [r]; `pairs` are the runs [n, r] and [m, r] of each task, r of a kind."""
    from scipy.special import stdtrit

    above, below = zip(*(placements(x, y) for x, y in pairs), strict=True)
    share = np.mean([part.mean(0) for part in above], axis=0)
    if min(len(part) for part in (*above, *below)) < 2:
        nothing = np.full_like(share, math.nan)
        return share, nothing, nothing
    tasks = len(pairs)
    known = combined([moments_of_mean(part) for part in (*above, *below)], [1 / tasks] * (2 * tasks))
    most = tasks**2 / sum((len(x) + len(y) + 1) / (3 * len(x) * len(y)) for x, y in pairs)
    with np.errstate(divide="ignore", invalid="ignore"):
        worth = np.where(known.variance > 0, share * (1 - share) / known.variance, most)
    count = np.clip(worth, 1.0, most)
    return share, *score_bounds(share, count, stdtrit(known.freedom, 0.5 + level / 2))


def placements(x: Array, y: Array) -> tuple[Array, Array]:
    """The share of `y` [m, r] that each of `x` [n, r] beats, and the share of `x` that beat each of `y`."""
    beats = (x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None])
    return beats.mean(1), beats.mean(0)
