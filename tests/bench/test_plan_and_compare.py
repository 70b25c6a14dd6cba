"""What a wanted effect takes, and two benches side by side."""

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from unirl_env.bench import baselines
from unirl_env.bench.compare import compare, compared
from unirl_env.bench.plan import PlanSettings, plan
from unirl_env.bench.stored import on_common_seeds, read_bench, scores
from unirl_env.bench.suite import load
from unirl_env.errors import ConfigError

TASKS = ("a", "b")


def bench(folder, levels, seeds=10, spread=0.05, shift=0.0, key=0):
    """A bench whose agents have these mean normalised scores; prompts differ by 0.2."""
    random = np.random.default_rng(key)
    rows = []
    for task in TASKS:
        for agent, level in levels.items():
            for seed in range(seeds):
                score = level + shift + spread * random.normal()
                prompts = (score + 0.2 * random.normal(size=16)).tolist()
                rows.append(
                    {
                        "task": task,
                        "agent": agent,
                        "seed": seed,
                        "status": "done",
                        "score": score,
                        "normalised": score,
                        "metrics": {"base": 0.0, "reference": 1.0, "wall_seconds": 36.0},
                        "prompts": {"heldout/reward": prompts},
                    }
                )
    folder.mkdir()
    plan = {"suite": {"name": "s", "tasks": {task: {} for task in TASKS}}}
    (folder / "bench.json").write_text(json.dumps(plan))
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


def test_a_plan_agrees_with_the_power_of_the_t_test(tmp_path, console):
    folder = bench(tmp_path / "pilot", {"x": 0.5, "y": 0.5})
    first, second, whole = plan(PlanSettings(pilot=str(folder), effect=0.05, workers=2), console)
    assert (first.name, second.name, whole.name) == ("a", "b", "mean over tasks")
    assert whole.seeds.seeds < max(first.seeds.seeds, second.seeds.seeds), "tasks even one another out"
    need = first.seeds

    def power(n):
        centre = 0.05 / need.deviation * math.sqrt(n)
        return stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, centre)

    assert power(need.seeds) >= 0.8 > power(need.seeds - 3)
    assert first.hours == pytest.approx(36.0 * 2 * need.seeds / 2 / 3600), "two agents, two at once"
    assert 5 < first.prompts < 60 and whole.prompts is None


def test_a_plan_without_a_pilot_says_what_to_do(tmp_path, console):
    with pytest.raises(ConfigError, match="two agents with two seeds"):
        plan(PlanSettings(pilot=str(bench(tmp_path / "one", {"x": 0.5}))), console)
    with pytest.raises(ConfigError, match="A bench"):
        plan(PlanSettings(pilot=str(tmp_path / "nothing")), console)
    with pytest.raises(ConfigError, match=r"`effect` must be"):
        PlanSettings(effect=0.0).check()


def test_a_plan_names_tasks_that_the_stored_results_lack(tmp_path, console, monkeypatch):
    monkeypatch.setattr(baselines, "BASELINES", tmp_path)
    suite = load("exact")
    del suite.tasks["tokens"]
    rows = [
        {"task": task, "agent": agent, "seed": seed, "score": 1.0, "normalised": 0.1 * seed * level,
         "metrics": {"base": 0.0, "reference": 1.0, "wall_seconds": 3.0}, "prompts": {}}
        for task in suite.tasks for agent, level in (("grpo", 1.0), ("drpo", 1.1)) for seed in range(4)
    ]  # fmt: skip
    baselines.store({"suite": suite.described()}, rows, tmp_path / "exact.jsonl.gz")
    needs = plan(PlanSettings(suite="exact"), console)
    assert [need.name for need in needs] == ["line", "mixture", "mean over tasks"]
    said = console.file.getvalue()
    assert "No results ship for tokens" in said and "tasks=[tokens] seeds=3" in said


def test_two_benches_are_paired_by_seed_and_ranked(tmp_path, console):
    levels = {"x": 0.2, "y": 0.5, "z": 0.8}
    before = bench(tmp_path / "before", levels, spread=0.01)
    after = bench(tmp_path / "after", levels, spread=0.01, shift=0.1, key=1)
    found = compare(before, after, console)
    assert found.agents == ["x", "y", "z"] and len(found.changes) == 9
    assert all(change.corrected < 0.05 for change in found.changes)
    assert found.tau.estimate == 1.0 and found.tau.low == 1.0
    means = scores(read_bench(before)[1]), scores(read_bench(after)[1])
    (change,) = [one for one in found.changes if (one.agent, one.task) == ("x", "a")]
    wanted = np.mean([means[1]["x"]["a"][s] - means[0]["x"]["a"][s] for s in range(10)])
    assert change.pair.difference.estimate == pytest.approx(wanted, abs=1e-12)
    assert "x" in console.file.getvalue()


def test_benches_without_an_agent_in_common_are_refused(tmp_path, console):
    with pytest.raises(ConfigError, match="agents in common"):
        compare(bench(tmp_path / "a", {"x": 0.1}), bench(tmp_path / "b", {"y": 0.1}), console)


def test_other_tasks_and_other_seeds_are_left_out():
    first = {"x": {"a": {0: 1.0, 1: 2.0}, "b": {0: 1.0}}, "y": {"a": {0: 0.0, 1: 0.0}}}
    second = {"x": {"a": {1: 3.0, 2: 9.0}}, "y": {"a": {1: 1.0, 2: 1.0}}}
    assert on_common_seeds(first["x"], second["x"]) == [{"a": [2.0]}, {"a": [3.0]}]
    found = compared(first, second)
    assert [(one.agent, one.task, one.pair.n) for one in found.changes] == [("x", "a", 1), ("y", "a", 1)]
    assert all(math.isnan(one.corrected) for one in found.changes), "one seed claims nothing"
