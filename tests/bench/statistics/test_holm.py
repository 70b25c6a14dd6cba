"""Holm's correction, against its definition by closed testing."""

import itertools
import math

import numpy as np
import pytest

from unirl_env.bench.statistics import holm
from unirl_env.errors import ConfigError


def closed(p_values):
    """The largest Bonferroni p-value of all sets of hypotheses that hold this one."""
    count = len(p_values)
    found = []
    for one in range(count):
        sets = [s for k in range(1, count + 1) for s in itertools.combinations(range(count), k) if one in s]
        found.append(max(min(1.0, len(s) * min(p_values[k] for k in s)) for s in sets))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_it_is_bonferroni_closed_over_all_sets(seed):
    p_values = (np.random.default_rng(seed).random(6) ** 3).tolist()
    assert holm(p_values) == pytest.approx(closed(p_values), abs=1e-12)


def test_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_what_was_no_comparison_does_not_count():
    adjusted = holm([0.01, math.nan, 0.04])
    assert adjusted[0] == pytest.approx(0.02) and math.isnan(adjusted[1]) and adjusted[2] == 0.04


def test_what_is_no_p_value_is_refused():
    with pytest.raises(ConfigError, match=r"`p_values` must lie between 0 and 1, got 1.5 at place 1; try"):
        holm([0.1, 1.5])
