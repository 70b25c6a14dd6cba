"""The example of an algorithm that is benchmarked, in a package of its own."""

import sys
from pathlib import Path

import pytest

from unirl_env.bench.bench_settings import BenchSettings
from unirl_env.bench.cells import cells
from unirl_env.bench.configurations import draw
from unirl_env.bench.player import played
from unirl_env.bench.running import prepared

HOME = Path(__file__).parents[2] / "examples" / "12_benchmark_your_algorithm"
AGENT = "mybench.leashed:LeashedConfig"


@pytest.fixture
def own(monkeypatch):
    monkeypatch.syspath_prepend(str(HOME))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "mybench"]:
        del sys.modules[name]


def test_it_is_an_algorithm_of_thirty_lines():
    assert len((HOME / "mybench" / "leashed.py").read_text().splitlines()) <= 30


@pytest.mark.parametrize("suite", ["exact", "quick", "mybench:suites/two.yaml"])
def test_it_fits_every_task(own, suite, tmp_path):
    bench = prepared(BenchSettings(suite=suite, agents=["grpo", AGENT], folder=str(tmp_path)))
    assert bench.refused == {} and [entry.label for entry in bench.entries] == ["grpo", "Leashed"]
    tried = draw(bench.entries[1], 3, 0)
    assert set(tried[1]) == {"lr", "leash"} and 0.1 <= tried[1]["leash"] <= 10


@pytest.mark.slow
@pytest.mark.ray
def test_it_learns(own, tmp_path):
    settings = BenchSettings(
        suite="mybench:suites/two.yaml", agents=[AGENT], tasks=["calm"], folder=str(tmp_path)
    )
    bench = prepared(settings)
    (cell,) = cells(bench.place, bench.suite, bench.entries, [0])
    row = played(cell)
    assert row["status"] == "done", row["error"]
    assert row["normalised"] > 0.5
