"""What intervals carry is what was measured, and what was measured is what they do."""

import importlib.util
import json
from pathlib import Path

import pytest

from unirl_env.bench.statistics import (
    aggregate,
    kendall,
    paired,
    probability_of_improvement,
    reached,
)
from unirl_env.statistics import coverage_in_words, mean_interval
from unirl_env.statistics import interval as interval_module

ROOT = Path(__file__).parents[2]
RESULTS = json.loads((ROOT / "benchmarks/results/coverage.json").read_text())["statistics"]
CARRIED = json.loads(Path(interval_module.__file__).with_name("coverage.json").read_text())


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("coverage_benchmark", ROOT / "benchmarks/coverage.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_intervals_carry_the_worst_that_was_measured(benchmark):
    assert CARRIED.keys() == RESULTS.keys() == benchmark.MEASURED.keys()
    for name, row in RESULTS.items():
        ordinary = [case["shipped"] for label, case in row["cases"].items() if not label.startswith("rare")]
        assert len(ordinary) >= 3
        for count in ("3", "5", "10", "30"):
            assert CARRIED[name]["coverage"][count] == min(case[count] for case in ordinary)


@pytest.mark.parametrize("name", sorted(RESULTS))
def test_ten_seeds_cover_what_they_say(name):
    assert CARRIED[name]["coverage"]["10"] >= 0.93
    assert CARRIED[name]["coverage"]["30"] >= 0.93


def test_every_interval_has_its_own():
    scores = {"a": [0.1, 0.2, 0.4], "b": [0.5, 0.1, 0.9]}
    for found, name in (
        (mean_interval([1.0, 2.0, 4.0]), "mean"),
        (paired([1.0, 2.0, 4.0], [0.0, 0.5, 0.1]).difference, "paired"),
        (aggregate(scores), "aggregate/iqm"),
        (aggregate(scores, "median"), "aggregate/median"),
        (aggregate(scores, "mean"), "aggregate/mean"),
        (probability_of_improvement(scores, scores), "improvement"),
        (kendall({"x": scores, "y": scores}, {"x": scores, "y": scores}), "kendall"),
        (reached([1.0, 2.0], [3.0, 3.0]).median, "cost"),
        (reached([1.0, 2.0], [3.0, 3.0]).share, "share"),
    ):
        assert found.coverage == CARRIED[name]["coverage"] and found.method
        assert found.rare == CARRIED[name].get("rare")
        assert json.loads(json.dumps(found.row()))["coverage"] == found.coverage


def test_other_levels_carry_none():
    assert mean_interval([1.0, 2.0, 4.0], 0.9).coverage is None


def test_it_is_said_in_words():
    share = CARRIED["mean"]["coverage"]["10"]
    assert f"With 10 of them, such intervals held the truth in {100 * share:.0f} %" in coverage_in_words(
        "mean", 16
    )
    assert coverage_in_words("mean", 2) == "" == coverage_in_words("nothing", 10)


@pytest.mark.parametrize("case", ["normal", "skewed", "two humps, 3 of 10 fail"])
def test_the_measurement_can_be_repeated(benchmark, case):
    draw = benchmark.DISTRIBUTIONS[case]
    values = draw(benchmark.generator("mean", case, 10), 0, (10, 20000))
    _, low, high = benchmark.mean_band(values)
    again = benchmark.held(benchmark.truth_of(case)["mean"], low, high)
    assert round(again, 3) == RESULTS["mean"]["cases"][case]["shipped"]["10"]
