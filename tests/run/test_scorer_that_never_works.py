"""A run whose scorer gives nothing: it is saved, ends with the cause, and goes on when that is mended."""

import json
import math
from types import SimpleNamespace

import pytest
from door_fakes import FakeAgent, darkness, small_config
from rich.console import Console

from unirl_env.episode import EpisodeBatch
from unirl_env.errors import ConfigError, ScorerError
from unirl_env.monitor.alarm import HackingAlarm
from unirl_env.run.agent_setup import Parts
from unirl_env.run.launch import launch
from unirl_env.run.preflight import preflight
from unirl_env.run.record import checkpoint as checkpoints
from unirl_env.run.record.logbook import read_rows
from unirl_env.settings import AlarmSettings
from unirl_env.types import Scores

CAUSE = "judge: ConnectionError: nobody answers at port 9"


class Unscored(FakeAgent):
    """Paints like the other one, with a scorer that works in some iterations only; others teach nothing."""

    def __init__(self, works, base=True):
        super().__init__()
        self.works, self.base = works, base

    def train(self):
        if self.works(self.iteration + 1):
            return super().train()
        self.iteration += 1
        scores = Scores([math.nan] * 4, faults=("an older one", CAUSE))
        self.last_batch = SimpleNamespace(scores=scores, samples=None)
        self.iteration_metrics = {"reward": math.nan, "reward_std": math.nan, "reward/failed": 4.0}
        return {}

    def run_state(self):
        tensors, meta = super().run_state()
        return tensors, meta | {"weights_version": meta["iteration"]}

    def rollout_eval(self, prompts, **options):
        batch = super().rollout_eval(prompts, **options)
        if self.base:
            return batch
        scores = Scores([math.nan] * len(batch.prompts), faults=(CAUSE,))
        return EpisodeBatch(**{**vars(batch), "scores": scores})


def start(cfg, agent, heldout=darkness):
    console = Console(width=200, record=True)
    try:
        return launch(cfg, console, build=lambda cfg: Parts(agent, heldout, {"model": "fake"}))
    finally:
        start.said = console.export_text()


def rows(folder):
    return [
        {name: value for name, value in row.items() if name != "seconds"}
        for row in read_rows(folder / "fake/metrics.jsonl")
    ]


def iterations(folder):
    return [found.iteration for found in checkpoints.listing(folder / "fake/checkpoints")]


def test_failed_iterations_in_a_row_end_a_run_that_goes_on_to_the_same_end(tmp_path):
    cfg = small_config(tmp_path / "cut", iterations=9, logging__keep_last=9)
    with pytest.raises(ScorerError, match=r"none in 3 iterations in a row .*4 samples each") as error:
        start(cfg, Unscored(lambda iteration: iteration not in (2, 5, 6, 7)))
    assert CAUSE in str(error.value)
    # The last sound state, and none that looks as if the failed iterations had been done.
    assert iterations(tmp_path / "cut") == [4]
    command = f"resume={tmp_path / 'cut/fake'}"
    assert command in start.said.replace("\n", "") and "iteration 4 is saved" in start.said
    cfg.resume = str(tmp_path / "cut/fake")
    cfg.reward.max_failed_iterations = 5  # whoever waits for a service may wait longer
    assert start(cfg, Unscored(lambda iteration: iteration != 2)) == 0
    whole = small_config(tmp_path / "whole", iterations=9)
    assert start(whole, Unscored(lambda iteration: iteration != 2)) == 0
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_fewer_failures_end_nothing(tmp_path):
    cfg = small_config(tmp_path, iterations=9)
    assert start(cfg, Unscored(lambda iteration: iteration % 3 == 0)) == 0
    assert len(rows(tmp_path)) == 9 and iterations(tmp_path)[-1] == 9
    single = small_config(tmp_path / "one", reward__max_failed_iterations=1)
    with pytest.raises(ScorerError, match="none in 1 iterations in a row"):
        start(single, Unscored(lambda iteration: iteration < 3))
    assert iterations(tmp_path / "one") == [2]


def test_a_scorer_that_never_worked_in_training_leaves_no_checkpoint(tmp_path):
    with pytest.raises(ScorerError, match="none in 3 iterations"):
        start(small_config(tmp_path), Unscored(lambda iteration: False))
    assert iterations(tmp_path) == [] and "no checkpoint yet" in start.said


def test_the_base_without_a_score_ends_a_run_before_it_trains(tmp_path):
    cfg = small_config(tmp_path)
    with pytest.raises(ScorerError, match=r"none for the 4 samples of the untrained model on train") as error:
        start(cfg, Unscored(lambda iteration: True, base=False))
    assert CAUSE in str(error.value) and rows(tmp_path) == []
    assert read_rows(tmp_path / "fake/evaluation.jsonl") == []
    cfg.resume = str(tmp_path / "fake")
    assert start(cfg, Unscored(lambda iteration: True)) == 0
    base = read_rows(tmp_path / "fake/evaluation.jsonl")[0]
    assert base["iteration"] == 0 and base["rewards"]["reward"]["mean"] is not None


def test_a_held_out_scorer_that_never_works_is_told_of_and_ends_nothing(tmp_path):
    def nothing(samples, prompts):
        raise RuntimeError("no key")

    assert start(small_config(tmp_path), FakeAgent(), nothing) == 0
    assert "no valid score of the untrained model" in start.said and "RuntimeError: no key" in start.said
    faults = [row["faults"] for row in read_rows(tmp_path / "fake/evaluation.jsonl")]
    assert all(list(each) == ["heldout"] and "no key" in json.dumps(each) for each in faults)


def test_the_number_must_be_one(tmp_path):
    with pytest.raises(ConfigError, match=r"`reward.max_failed_iterations` must be at least 1, got 0"):
        preflight(small_config(tmp_path, reward__max_failed_iterations=0))


def test_no_alarm_takes_missing_rewards_for_easy_prompts():
    settings = AlarmSettings(smooth=1, patience=1, zero_std_groups=0.5, saturation=0.5)
    failed = {"reward": None, "reward/failed": 8.0, "zero_std_groups": 1.0, "saturation": 1.0}
    sound = {
        "reward": 1.0,
        "reward/failed": 0.0,
        "zero_std_groups": 1.0,
        "reward_max": 1.0,
        "reward_min": 1.0,
    }
    assert not HackingAlarm.replay(settings, [failed | {"iteration": i} for i in range(5)]).findings
    rung = HackingAlarm.replay(settings, [sound | {"iteration": i} for i in range(5)]).findings
    assert [finding.signal for finding in rung] == ["zero_std_groups"]
