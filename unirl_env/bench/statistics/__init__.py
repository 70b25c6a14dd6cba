"""What can be said of agents after a few seeds: aggregates, differences, rankings, costs and plans.

Every interval carries how often it held the truth in simulations of 3, 5, 10 and 30 seeds, the worst over the
distributions that were tried (`benchmarks/coverage.py`). One seed can be shown, and claims nothing: its
bounds are NaN, and NaN excludes no value. Results depend on the numbers alone, never on what was asked
before.
"""

from unirl_env.bench.statistics.aggregates import aggregate
from unirl_env.bench.statistics.censoring import Reached, reached
from unirl_env.bench.statistics.families import paired_together
from unirl_env.bench.statistics.holm import holm
from unirl_env.bench.statistics.improvement import probability_of_improvement
from unirl_env.bench.statistics.pairs import Paired, common, paired, paired_over_tasks
from unirl_env.bench.statistics.planning import Plan, seeds_needed
from unirl_env.bench.statistics.profiles import performance_profile
from unirl_env.bench.statistics.rankings import kendall
from unirl_env.statistics import Interval, mean_band, mean_interval

__all__ = [
    "Interval",
    "Paired",
    "Plan",
    "Reached",
    "aggregate",
    "common",
    "holm",
    "kendall",
    "mean_band",
    "mean_interval",
    "paired",
    "paired_over_tasks",
    "paired_together",
    "performance_profile",
    "probability_of_improvement",
    "reached",
    "seeds_needed",
]
