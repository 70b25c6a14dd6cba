"""Results that ship: found, told apart from others, and held against what this code does."""

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from unirl_env.bench import baselines
from unirl_env.bench.baselines import (
    baseline_rows,
    every_stored,
    one_more,
    store,
    stored,
    without_results,
)
from unirl_env.bench.bench_settings import BenchSettings
from unirl_env.bench.cells import cells
from unirl_env.bench.contestants import contestants
from unirl_env.bench.player import played
from unirl_env.bench.running import _tell_without_results, _write_plan, prepared
from unirl_env.bench.suite import load, suites

SHIPPED = ("exact", "quick")


def test_one_more_run_lies_inside_as_often_as_it_should():
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(4000):
        *known, new = random.normal(size=6)
        low, high = one_more(known, 0.9)
        inside += low <= new <= high
    assert inside / 4000 == pytest.approx(0.9, abs=0.015)
    low, high = one_more([1.0, 3.0], 0.5)
    assert (low + high) / 2 == 2.0
    assert high - 2.0 == pytest.approx(stats.t.ppf(0.75, 1) * math.sqrt(2) * math.sqrt(1.5))


def test_results_are_stored_and_shown_where_the_task_is_the_very_same(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "BASELINES", tmp_path)
    suite = load("exact")
    rows = [
        {"task": task, "agent": "grpo", "seed": 0, "score": 1 / 3, "folder": "x", "words": ["y"]}
        for task in suite.tasks
    ]
    store({"suite": suite.described()}, rows, tmp_path / "exact.jsonl.gz")
    before = (tmp_path / "exact.jsonl.gz").read_bytes()
    store({"suite": suite.described()}, rows, tmp_path / "exact.jsonl.gz")
    assert (tmp_path / "exact.jsonl.gz").read_bytes() == before, "the same bytes for the same results"
    shown = baseline_rows(suite, [{"agent": "mine"}])
    assert len(shown) == len(suite.tasks) and all(row["baseline"] for row in shown)
    assert shown[0]["score"] == 0.3333333 and "folder" not in shown[0]
    assert baseline_rows(suite, [{"agent": "grpo"}]) == [], "what was run is not shown twice"
    changed = load("exact")
    changed.tasks["line"].__dict__["settings"] = ("iterations=3",)
    assert {row["task"] for row in baseline_rows(changed, [])} == set(suite.tasks) - {"line"}
    assert len(every_stored()) == len(rows)


def test_a_task_of_which_no_results_ship_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "BASELINES", tmp_path)
    assert without_results(load("exact")) == [], "of a suite without any nothing is missing"
    old, now = load("exact"), load("exact")
    del old.tasks["mixture"]
    old.tasks["tokens"].__dict__["settings"] = ("iterations=3",)
    rows = [{"task": task, "agent": "grpo", "seed": 0, "score": 1.0} for task in old.tasks]
    store({"suite": old.described()}, rows, tmp_path / "exact.jsonl.gz")
    assert without_results(now) == ["mixture", "tokens"], "a new one, and one that is another now"
    assert without_results(now.only(["line"])) == []
    assert {row["task"] for row in baseline_rows(now, [])} == {"line"}


def test_a_bench_says_where_nothing_ships_before_it_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "BASELINES", tmp_path)
    old = load("exact")
    del old.tasks["mixture"]
    store({"suite": old.described()}, [], tmp_path / "exact.jsonl.gz")
    console = Console(file=io.StringIO(), width=200)
    settings = BenchSettings(suite="exact", agents=["grpo"], folder=str(tmp_path))
    bench = prepared(settings)
    bench.place.mkdir()
    _tell_without_results(bench, console)
    _write_plan(bench, bench.entries, ["bench"])
    plan = json.loads((bench.place / "bench.json").read_text())
    assert plan["without_results"] == ["mixture"]
    assert "No results ship for mixture as the suite has it" in console.file.getvalue()
    settings.baselines = False
    _write_plan(prepared(settings), bench.entries, ["bench"])
    assert json.loads((bench.place / "bench.json").read_text())["without_results"] == []


def test_new_tasks_of_the_embedded_models_are_known_to_have_none_yet():
    assert without_results(load("tiny")) == ["tiny_video"]


@pytest.mark.parametrize("name", SHIPPED)
def test_results_ship_for_the_suite_as_it_is(name):
    bench, rows = stored(name)
    assert bench["suite"] == json.loads(json.dumps(load(name).described())), "run the bench again"
    assert name in suites() and len({row["seed"] for row in rows}) >= 10
    assert {"grpo", "flow_dppo", "drpo"} <= {row["agent"] for row in rows}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("task", ["line", "mixture", "tokens"])
def test_a_run_of_today_lies_inside_the_known_band(task, tmp_path):
    """Seeds that are not stored; an interval that a sound run leaves once in ten thousand times."""
    settings = BenchSettings(suite="exact", agents=["grpo"], tasks=[task], folder=str(tmp_path))
    bench = prepared(settings)
    known = [r["score"] for r in stored("exact")[1] if r["task"] == task and r["agent"] == "grpo"]
    low, high = one_more(known, 0.9999)
    for cell in cells(bench.place, bench.suite, contestants(["grpo"]), [777]):
        row = played(cell)
        assert row["status"] == "done", row["error"]
        assert low <= row["score"] <= high
