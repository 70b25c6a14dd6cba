"""Does the ranking of agents on one suite tell that on another one?

Kendall's tau-b of the agents' mean scores in two suites. The truth that the interval is to hold is the tau
of the rankings that these agents have on these tasks with seeds without end; of other agents and other
tasks it says nothing.

Resampling seeds does not give such an interval: noise pulls two rankings apart, and resampling does so once
more. Where agents are close together, its percentiles left out the truth in nearly all simulations. So the
interval counts what is known. The order of two agents in a suite is known where their difference holds
against Holm's correction over all pairs of agents. A pair known in both suites counts as it stands; any
other may go either way, and gives the interval its width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from unirl_env.bench.statistics.holm import holm
from unirl_env.errors import ConfigError
from unirl_env.statistics import Interval
from unirl_env.statistics.given import Array, by_task, proper_level
from unirl_env.statistics.interval import measured
from unirl_env.statistics.studentised import Moments, combined, moments_of_mean, p_value

METHOD = "pairs of agents whose order is known in both suites (Holm); the others either way"
_FIELDS = ("estimate", "variance", "third", "freedom")
Suite = Mapping[str, Mapping[str, Sequence[float] | Array]]


def kendall(first: Suite, second: Suite, level: float = 0.95) -> Interval:
    """Tau-b of the rankings of the same agents in two suites; NaN where all agents of one are equal.

    Args:
        first: Agent to task to the scores of its seeds; the tasks are the same for all agents of a suite.
        second: The same agents in the other suite.
        level: How often the interval is to hold the truth.

    Raises:
        ShapeError: If a task has no seeds.
        ConfigError: If the agents of both differ, there are fewer than two, or an agent lacks a task.
    """
    proper_level(level)
    if first.keys() != second.keys() or len(first) < 2:
        raise ConfigError(
            f"`first` and `second` must rank the same agents, at least two, got {sorted(first)} and "
            f"{sorted(second)}; try the agents that both suites have."
        )
    agents = sorted(first)
    (ranks, known), (others, also) = (_ordered(suite, agents, level) for suite in (first, second))
    agree = known * also
    free = int((agree == 0).sum())
    low, high = ((int(agree.sum()) + side * free) / len(agree) for side in (-1, 1))
    return Interval(tau_b(ranks, others), low, high, level, METHOD, **measured("kendall", level))


def tau_b(ranks: Array, others: Array) -> float:
    """Kendall's tau-b of signs of pairs [k], 0 for a tie."""
    untied = math.sqrt(np.count_nonzero(ranks) * np.count_nonzero(others))
    return float(ranks @ others / untied) if untied else math.nan


def known_order(apart: Moments, least: Array, level: float) -> Array:
    """The signs of differences [k] that are known together; 0 for the others.

    A wrong order is an error on one side, so each may take twice of what is left of the level.

    Args:
        apart: Of the differences [k].
        least: The p-value of each where none of its runs differ, so that there is no spread to go by.
        level: Of all of them together.
    """
    spread = (apart.variance > 0) | (apart.estimate == 0)
    p = holm(np.where(spread, p_value(apart), least).tolist())
    return np.where(np.array(p) <= 2 * (1 - level), np.sign(apart.estimate), 0.0)


def _ordered(suite: Suite, agents: Sequence[str], level: float) -> tuple[Array, Array]:
    """Signs of all pairs of agents, as seen and as known [k]."""
    tasks = sorted(suite[agents[0]])
    scores = []
    for agent in agents:
        if sorted(suite[agent]) != tasks:
            raise ConfigError(
                f"`{agent}` must have the tasks of the other agents, {', '.join(tasks)}, got "
                f"{', '.join(sorted(suite[agent])) or 'none'}; try the tasks that all agents have."
            )
        scores.append(by_task(suite[agent], agent))
    means = np.array([np.mean([score[task].mean() for task in tasks]) for score in scores])
    one, two = np.triu_indices(len(agents), 1)
    seen = np.sign(means[one] - means[two])
    if min(len(seeds) for score in scores for seeds in score.values()) < 2:
        return seen, np.zeros(len(one))
    weights = [1 / len(tasks)] * len(tasks)
    known = [combined([moments_of_mean(score[task]) for task in tasks], weights) for score in scores]
    table = [np.array([getattr(part, field) for part in known]) for field in _FIELDS]
    apart = combined([Moments(*(column[side] for column in table)) for side in (one, two)], [1.0, -1.0])
    least = [_chance(scores[a], scores[b]) for a, b in zip(one, two, strict=True)]
    return seen, known_order(apart, np.array(least), level)


def _chance(x: Mapping[str, Array], y: Mapping[str, Array]) -> float:
    """How likely it is that runs dealt to two agents at random all lie apart, on either side."""
    return min(1.0, 2 / math.prod(math.comb(len(x[task]) + len(y[task]), len(x[task])) for task in x))
