"""The suites of exact worlds: every task composes, is measured untrained, and asks for what it says."""

import pytest

from unirl_env import train
from unirl_env.bench import exact
from unirl_env.bench.suite import load
from unirl_env.run.preflight import preflight

CELLS = [(name, task) for name in ("exact", "quick") for task in load(name).tasks.values()]


@pytest.mark.parametrize(("suite", "task"), CELLS, ids=[f"{suite}-{task.name}" for suite, task in CELLS])
def test_a_task_runs_with_every_agent_and_knows_its_optimum(suite, task, tmp_path):
    agents = ["grpo", "flow_dppo", "drpo"] + (["gspo"] if task.recipe.startswith("mdp/") else [])
    for agent in agents:
        words = [f"agent={agent}", *task.settings, f"logging.folder={tmp_path}"]
        cfg = train.settings(task.recipe, words)
        preflight(cfg)
    found = getattr(exact, task.measure.rpartition(":")[2])(cfg, exact.network_of(cfg))
    assert found["objective"] == pytest.approx(found["base"]) and found["kl"] == pytest.approx(0, abs=1e-9)
    assert found["optimum"] > found["base"] + 0.1
    assert task.why and task.title and task.score == "exact"
