import io
import json
import math

import numpy as np
import pytest
import torch
from door_fakes import fake_parts, small_config
from rich.console import Console

from unirl_env.episode import EpisodeBatch
from unirl_env.errors import CheckpointError, PromptError
from unirl_env.evaluate import main
from unirl_env.run.comparison import Options, compare
from unirl_env.run.evaluator import Evaluator, difference, interval, summarize
from unirl_env.run.launch import launch
from unirl_env.run.report.page import _difference
from unirl_env.run.summary import gain
from unirl_env.types import Prompt, Scores


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    launch(small_config(folder, logging__eval_every=2), Console(file=io.StringIO()), [], fake_parts())
    return folder / "fake"


def ask(run, **options):
    stream = io.StringIO()
    agents = []
    build = fake_parts(agents=agents)
    rows = compare(str(run), Options(**options), Console(file=stream, width=160), build)
    return rows, stream.getvalue(), agents


def test_a_checkpoint_is_set_beside_its_base(run, tmp_path):
    rows, seen, agents = ask(run, out=tmp_path)
    assert [(row["set"], row["iteration"]) for row in rows] == [
        ("train", 0),
        ("train", 6),
        ("heldout", 0),
        ("heldout", 6),
    ]
    assert rows[1]["difference"]["reward"]["low"] > 0
    assert "difference" in seen
    assert "reward/brightness" in seen
    assert json.loads((tmp_path / "comparison.json").read_text()) == rows
    assert "<img" in (tmp_path / "index.html").read_text()
    assert agents[0].stopped


def test_the_numbers_are_those_that_the_run_saw(run, tmp_path):
    rows, _, _ = ask(run, out=tmp_path)
    recorded = [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]
    last = next(row for row in recorded if row["iteration"] == 6 and row["set"] == "train")
    assert rows[1]["values"] == last["values"]


def test_another_seed_is_other_noise(run, tmp_path):
    rows, _, _ = ask(run, out=tmp_path, seed=1)
    other, _, _ = ask(run, out=tmp_path, seed=2)
    assert rows[0]["values"] != other[0]["values"]


def test_prompts_samples_and_adapters_of_ones_own(run, tmp_path):
    (tmp_path / "mine.txt").write_text("one\ntwo\nthree\n")
    rows, _, agents = ask(
        run, out=tmp_path / "out", prompts=str(tmp_path / "mine.txt"), samples=3, export=tmp_path / "lora"
    )
    assert [row["prompts"] for row in rows] == [["one", "two", "three"]] * 2
    assert len(rows[0]["values"]["reward"]) == 9
    assert len(list((tmp_path / "out/pictures/given/after").glob("*.png"))) == 9
    assert agents[0].exports == [str(tmp_path / "lora")]


@pytest.mark.parametrize(("wanted", "iteration"), [("last", 6), ("best", 6), ("4", 4)])
def test_checkpoints_have_names(run, tmp_path, wanted, iteration):
    rows, _, _ = ask(run, out=tmp_path, checkpoint=wanted)
    assert rows[1]["iteration"] == iteration


def test_mistakes_are_named(run, tmp_path):
    with pytest.raises(CheckpointError, match="manifest"):
        ask(run, checkpoint="5")
    with pytest.raises(PromptError, match="shipped sets"):
        ask(run, prompts="nowhere")
    with pytest.raises(CheckpointError, match="folder of a run"):
        ask(tmp_path)


def test_a_mistake_on_the_command_line_is_one_message(tmp_path, capsys):
    assert main(["--run", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("CheckpointError")
    assert "Traceback" not in message


def test_intervals_are_over_prompts_not_over_their_samples():
    # Four prompts that differ, whose samples agree: 100 samples each add nothing to what is known.
    few = interval([0.0, 1.0, 0.2, 0.8], 1)
    many = interval(np.repeat([0.0, 1.0, 0.2, 0.8], 100).tolist(), 100)
    assert (few.low, few.high) == pytest.approx((many.low, many.high))
    assert few.mean == 0.5


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        found = interval(rng.normal(1.0, 1.0, 30).tolist(), 1)
        hits += found.low <= 1.0 <= found.high
    assert 85 <= hits <= 99


def test_failed_scores_are_counted_and_left_out():
    found = interval([1.0, None, 3.0, 3.0], 2)
    assert (found.mean, found.failed) == (2.0, 1)
    nothing = interval([None, None], 1)
    assert math.isnan(nothing.mean)
    assert nothing.row() == {"mean": None, "std": None, "low": None, "high": None, "failed": 2, "absent": 0}
    assert difference([1.0, None], [0.5, 0.1], 1).mean == 0.5


def test_a_part_that_does_not_apply_has_not_failed():
    values = {
        "reward": [0.5, None, 0.7, 0.9],
        "reward/place": [None, None, 1.0, None],
        "reward/parsed": [1.0, 0.0, 1.0, 1.0],
        "heldout": [None, None, 1.0, 1.0],
        "heldout/part": [None, 1.0, None, 1.0],
    }
    rewards = summarize(values, 1)["rewards"]
    failed = {name: row["failed"] for name, row in rewards.items()}
    assert [row["absent"] for row in rewards.values()] == [0, 2, 0, 0, 1]
    assert rewards["reward"]["std"] == pytest.approx(float(np.std([0.5, 0.7, 0.9])))
    assert failed == {"reward": 1, "reward/place": 1, "reward/parsed": 0, "heldout": 2, "heldout/part": 1}


def test_a_difference_fails_where_either_main_value_does():
    scored = Scores(torch.tensor([1.0, math.nan, 1.0]), {"place": torch.tensor([math.nan, math.nan, 1.0])})
    prompts = tuple(Prompt(name) for name in "abc")

    class Agent:
        def rollout_eval(self, prompts, **options):
            return EpisodeBatch(
                phases={},
                scores=scored,
                group=torch.arange(3),
                prompts=tuple(prompts),
                episode_seed=torch.arange(3),
            )

    base = {"values": {"reward": [0.5, 0.5, None], "reward/place": [None, 1.0, None]}}
    row, _ = Evaluator(Agent(), {"train": prompts}, 1).measure("train", 1, False, base)
    assert {name: part["failed"] for name, part in row["rewards"].items()} == {"reward": 1, "reward/place": 1}
    assert {name: part["failed"] for name, part in row["difference"].items()} == {
        "reward": 2,
        "reward/place": 2,
    }
    assert [part["absent"] for part in row["difference"].values()] == [0, 1]
    assert row["difference"]["reward"]["mean"] == 0.5


def test_one_prompt_falls_back_to_its_samples():
    found = interval([0.0, 1.0, 0.0, 1.0], 4)
    assert found.low < 0.5 < found.high


def test_a_single_number_is_shown_without_a_claim():
    row = difference([0.9], [0.5], 1).row()
    assert row["mean"] == pytest.approx(0.4) and row["low"] is None and row["high"] is None
    assert gain(row) == "+0.400"
    assert _difference(row) == '<span class="gain flat">+0.400</span><small></small>'
