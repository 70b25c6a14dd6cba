"""Probability of improvement, against counting, scipy and a search over the truth."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from unirl_env.bench.statistics import probability_of_improvement
from unirl_env.bench.statistics.improvement import improvement
from unirl_env.errors import ConfigError

RNG = np.random.default_rng(2)
X = {"a": np.round(RNG.normal(0.6, 1, 8), 1), "b": RNG.normal(0.2, 1, 5), "c": RNG.integers(0, 3, 7) / 2}
Y = {"a": np.round(RNG.normal(0.0, 1, 6), 1), "b": RNG.normal(0.0, 2, 9), "c": RNG.integers(0, 3, 7) / 2}


def counted(x, y):
    wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in x for b in y)
    return wins / len(x) / len(y)


def test_the_estimate_is_counted():
    by_hand = sum(counted(X[task], Y[task]) for task in X) / 3
    assert probability_of_improvement(X, Y).estimate == pytest.approx(by_hand, abs=1e-12)


def test_one_task_is_mann_and_whitneys_statistic():
    found = probability_of_improvement({"a": X["b"]}, {"a": Y["b"]})
    plain = stats.mannwhitneyu(X["b"], Y["b"]).statistic
    assert found.estimate == pytest.approx(plain / 45, abs=1e-12)


def by_search(x, y, level=0.95):
    """Where the estimate lies as far from the truth as the t allows, the truth's own variance scaled."""
    share = sum(counted(x[t], y[t]) for t in x) / len(x)
    strata = []
    for task in x:
        strata.append([counted([a], y[task]) for a in x[task]])
        strata.append([counted(x[task], [b]) for b in y[task]])
    parts = [np.var(part, ddof=1) / len(part) / len(x) ** 2 for part in strata]
    freedom = sum(parts) ** 2 / sum(v**2 / (len(p) - 1) for v, p in zip(parts, strata, strict=True))
    most = len(x) ** 2 / sum((len(x[t]) + len(y[t]) + 1) / (3 * len(x[t]) * len(y[t])) for t in x)
    count = min(share * (1 - share) / sum(parts), most)
    quantile = stats.t.ppf(0.5 + level / 2, freedom)

    def far(truth):
        return (share - truth) ** 2 - quantile**2 * truth * (1 - truth) / count

    return optimize.brentq(far, 0.0, share, xtol=1e-14), optimize.brentq(far, share, 1.0, xtol=1e-14)


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_bounds_are_those_of_a_search(level):
    found = probability_of_improvement(X, Y, level)
    assert (found.low, found.high) == pytest.approx(by_search(X, Y, level), abs=1e-8)


def test_sides_can_be_changed():
    there, back = probability_of_improvement(X, Y), probability_of_improvement(Y, X)
    assert (back.estimate, back.low, back.high) == pytest.approx(
        (1 - there.estimate, 1 - there.high, 1 - there.low)
    )


def test_runs_that_always_win_may_still_lose_one():
    found = probability_of_improvement({"a": [2.0, 3.0, 4.0, 5.0]}, {"a": [0.0, 1.0, 0.5, 0.2]})
    assert found.estimate == 1.0 and found.high == 1.0 and 0.3 < found.low < 0.8
    more = probability_of_improvement({"a": np.arange(10) + 20.0}, {"a": np.arange(10.0)})
    assert found.low < more.low < 0.95
    equal = probability_of_improvement({"a": [1.0, 1.0, 1.0]}, {"a": [1.0, 1.0, 1.0]})
    assert equal.estimate == 0.5 and equal.low < 0.3 and equal.high > 0.7


def test_one_seed_is_shown_and_claims_nothing():
    found = probability_of_improvement({"a": [1.0]}, {"a": [0.0, 2.0, 0.5]})
    assert found.estimate == pytest.approx(2 / 3) and not found.known


def test_tasks_of_one_side_are_refused():
    with pytest.raises(ConfigError, match="must have the same tasks, got b"):
        probability_of_improvement({"a": [1.0]}, {"a": [1.0], "b": [2.0]})


def test_it_covers_near_certainty_too():
    rng = np.random.default_rng(0)
    for shift in (0.0, 1.0, 2.0):
        truth = stats.norm.cdf(shift / math.sqrt(2))
        pairs = [(rng.normal(shift, 1, (10, 1500)), rng.normal(0, 1, (10, 1500)))]
        _, low, high = improvement(pairs, 0.95)
        assert ((low <= truth) & (truth <= high)).mean() >= 0.94
