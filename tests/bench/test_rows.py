"""From a run's folder to its row."""

import json
import math

import pytest

from unirl_env.bench.cells import Cell
from unirl_env.bench.contestants import Contestant
from unirl_env.bench.rows import evaluation_of, failed_row, hacking, normalised, row_of, settings_key
from unirl_env.bench.suite import Task
from unirl_env.errors import ConfigError
from unirl_env.train import settings

TASK = Task("mix/plain", "diffusion/gaussian_mixture", score="heldout/heldout", reference=2.0)


def metric(iteration, reward, heldout=None, **more):
    row = {"iteration": iteration, "reward": reward, "reward_std": 2.0, "episodes": 8.0, "seconds": 0.5}
    row |= {"function_evaluations": 80.0, "seconds/rollout": 0.2, "reward/failed": 1.0, **more}
    return row if heldout is None else row | {"heldout": heldout, "heldout_std": 1.0}


def evaluation(iteration, mean, values=(1.0, 3.0, None, 2.0)):
    part = {"mean": mean, "std": 0.0, "low": mean, "high": mean, "failed": 1, "absent": 0}
    return {
        "iteration": iteration,
        "set": "heldout",
        "samples": 2,
        "rewards": {"reward": part, "heldout": part, "heldout/strict": part},
        "values": {"reward": list(values), "heldout": list(values)},
    }


@pytest.fixture
def cell(tmp_path):
    made = Cell(tmp_path, TASK, Contestant("grpo", "grpo"), 3)
    made.folder.path.mkdir(parents=True)

    def write(metrics, evaluations):
        for name, rows in (("metrics", metrics), ("evaluation", evaluations)):
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (made.folder.path / f"{name}.jsonl").write_text(text)
        return made

    return write


def test_a_row_has_score_costs_and_curve(cell):
    made = cell(
        [metric(1, 0.1, 0.0, reference_kl=0.01), metric(2, 0.5, 0.5, tokens=4.0)],
        [evaluation(0, 0.5), evaluation(2, 1.25)],
    )
    row = row_of(made, settings("diffusion/gaussian_mixture"))
    assert (row["task"], row["agent"], row["seed"], row["status"]) == ("mix/plain", "grpo", 3, "done")
    assert row["score"] == 1.25 and row["normalised"] == pytest.approx(0.5)
    found = row["metrics"]
    assert (found["episodes"], found["function_evaluations"], found["seconds"]) == (16.0, 160.0, 1.0)
    assert (found["kl"], found["base"], found["reference"]) == (0.01, 0.5, 2.0)
    assert found["heldout/heldout"] == 1.25 and "heldout/heldout/strict" not in found
    assert found["heldout/reward/best@2"] == 2.5, "pass@k, of rewards that are 0 or 1"
    assert found["generated_tokens"] == 32.0 and found["training_failed_scores"] == 2.0
    assert row["prompts"]["heldout/reward"] == [2.0, 2.0], "means over samples, failures left out"
    assert row["evaluation"] == {"prompts": 2, "samples": 2, "steps": 16, "guidance": 1.0}
    assert row["curve"]["iteration"] == [0, 2] and row["curve"]["episodes"] == [0.0, 16.0]
    assert row["curve"]["score"] == [0.5, 1.25] and row["curve"]["reward"] == [None, 0.5]
    json.dumps(row)


@pytest.mark.parametrize(
    ("recipe", "words", "wanted"),
    [
        ("diffusion/sd3", ["policy.eval_guidance=4.5"], {"steps": 28, "guidance": 4.5}),
        ("diffusion/sd3", ["model.eval_num_steps=null", "policy.guidance=2"], {"steps": 10, "guidance": 2.0}),
        ("ar/qwen3_math", [], {"temperature": 1.0}),
        ("ar/qwen3_math", ["policy.eval_temperature=0"], {"temperature": 0.0}),
        ("unified_model/tiny_unified", [], {"steps": 8, "guidance": 1.0, "temperature": 1.0}),
    ],
)
def test_how_a_score_was_measured_is_what_evaluation_was_told(recipe, words, wanted):
    found = evaluation_of(settings(recipe, words), [evaluation(0, 0.5)], "heldout/reward")
    assert found == {"prompts": 2, "samples": 2, **wanted}


def test_a_score_that_is_no_number_is_a_run_that_diverged(cell):
    made = cell([metric(1, 0.1)], [evaluation(0, 0.5), evaluation(1, None)])
    row = row_of(made, settings("diffusion/gaussian_mixture"))
    assert (row["status"], row["score"], row["normalised"]) == ("diverged", None, 0.0)


def test_a_score_that_nothing_measures_is_named(cell):
    made = cell([metric(1, 0.1)], [])
    with pytest.raises(ConfigError, match="`score` of a task"):
        row_of(made, settings("diffusion/gaussian_mixture"))


def test_a_run_that_fell_counts_as_untrained_and_keeps_what_it_cost(cell):
    row = failed_row(cell([metric(1, 0.1)], []), "crashed", "ValueError: no")
    assert (row["normalised"], row["score"], row["metrics"]["episodes"]) == (0.0, None, 8.0)


def test_rows_are_kept_whole(cell):
    made = cell([], [])
    assert made.row() is None
    made.keep({"score": math.nan, "status": "done"})
    assert made.row() == {"score": None, "status": "done"}
    made.row_path.write_text('{"sco')
    assert made.row() is None, "half a row is none"


@pytest.mark.parametrize(
    ("training", "heldout", "share"),
    [
        ([0.0, 1.0, 2.0], [0.0, 1.0, 2.0], 0.0),
        ([0.0, 2.0, 4.0], [0.0, 0.0, 0.0], 1.0),
        ([0.0, 2.0, 4.0], [0.0, -1.0, -2.0], 1.0),  # below where it began counts as nothing shared
        ([0.0, 2.0, 4.0], [0.0, 1.0, 0.0], 5 / 6),
        ([0.0, -2.0, -4.0], [0.0, 1.0, 0.0], 0.0),
    ],
)
def test_hacking_is_the_share_of_the_gain_that_only_training_has(training, heldout, share):
    rows = [
        {"reward": 2 * t, "reward_std": 2.0, "heldout": h, "heldout_std": 1.0}
        for t, h in zip(training, heldout, strict=True)
    ]
    assert hacking(rows) == pytest.approx(share)
    assert hacking(rows[:1]) is None


def test_scores_are_normalised_between_base_and_reference():
    assert normalised(0.5, 0.0, 2.0) == 0.25
    assert normalised(0.5, 1.0, 1.0) is None and normalised(None, 0.0, 1.0) is None


def test_runs_of_the_same_training_share_a_key():
    first = settings("diffusion/gaussian_mixture", ["seed=1", "iterations=3", "logging.eval_samples=9"])
    assert settings_key(first) == settings_key(settings("diffusion/gaussian_mixture"))
    assert settings_key(first) != settings_key(settings("diffusion/gaussian_mixture", ["agent.lr=1e-3"]))
