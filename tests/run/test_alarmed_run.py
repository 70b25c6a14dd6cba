"""A run whose reward is exploited: what it says, what it leaves, and how it goes on."""

import io
import json
import os
import signal

import pytest
import torch
from door_fakes import FakeAgent, darkness, small_config
from rich.console import Console

from unirl_env.run.agent_setup import Parts
from unirl_env.run.launch import launch
from unirl_env.run.record.logbook import read_rows
from unirl_env.types import Prompt, Scores

CLOCKS = ("seconds", "seconds/heldout")


class Painter(FakeAgent):
    """Paid for brightness, on samples that are kept."""

    def train(self):
        super().train()
        prompts = [Prompt(f"a lamp, {self.iteration}, {i}") for i in range(4)]
        self.last_batch = self.rollout_eval(prompts, samples_per_prompt=2, seed=0)


def settings(folder, **changes):
    """A run in which the gap rings at the same iteration, whatever else happens to it."""
    base = {"iterations": 12, "alarm__heldout_every": 1, "alarm__smooth": 1, "alarm__patience": 2}
    return small_config(folder, reward__heldout="sharpness", **{**base, **changes})


def start(cfg, heldout=darkness, on_iteration=None):
    stream = io.StringIO()

    def build(cfg):
        return Parts(Painter(cfg.seed, on_iteration), heldout, {"model": "fake"})

    return launch(cfg, Console(file=stream, width=200), ["test"], build), stream.getvalue()


def left(folder, name="metrics"):
    rows = read_rows(folder / "fake" / f"{name}.jsonl")
    return [{key: value for key, value in row.items() if key not in CLOCKS} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    code, seen = start(settings(folder))
    return folder, code, seen


def test_the_held_out_reward_judges_the_samples_of_the_iteration(whole):
    rows = left(whole[0])
    assert all(row["heldout/failed"] == 1 for row in rows)
    # Brightness and darkness of seven of the same eight pictures add up to one.
    assert all(row["reward"] + row["heldout"] == pytest.approx(1, abs=0.1) for row in rows)
    assert {"heldout_std", "heldout/failed"} < set(rows[0])


def test_an_alarm_warns_and_the_run_goes_on(whole):
    folder, code, seen = whole
    assert code == 0 and len(left(folder)) == 12
    (alarm,) = left(folder, "alarms")
    assert alarm["signal"] == "gap" and 2 < alarm["iteration"] < 12
    assert alarm["value"] > alarm["bound"] == 0.5
    assert seen.count("Alarm (gap):") == 1, "when it rings"
    assert seen.count(f"Alarm (gap), iteration {alarm['iteration']}:") == 1, "and at the end"
    page = (folder / "fake/report.html").read_text()
    assert f"rang at iteration {alarm['iteration']}<" in page and 'class="mark"' in page


def test_an_alarm_that_may_end_a_run_ends_it_whole(tmp_path, whole):
    code, seen = start(settings(tmp_path, alarm__stop=["gap"]))
    (alarm,) = left(whole[0], "alarms")
    at = alarm["iteration"]
    assert code == 3
    assert left(tmp_path) == left(whole[0])[:at] and left(tmp_path, "alarms") == [alarm]
    assert (tmp_path / "fake/checkpoints" / f"{at:06d}").is_dir()
    assert [row["iteration"] for row in left(tmp_path, "evaluation")] == [0, 0, at, at]
    assert f"The run ended at iteration {at}" in seen and "alarm.stop=none" in seen
    assert "and ended the run" in (tmp_path / "fake/report.html").read_text()
    # As it was, it is ended still; the settings of the alarm may change.
    assert start(settings(tmp_path, alarm__stop=["gap"], resume="auto"))[0] == 3
    assert len(left(tmp_path)) == at
    assert start(settings(tmp_path, resume="auto"))[0] == 0
    assert left(tmp_path) == left(whole[0]) and left(tmp_path, "alarms") == [alarm]


@pytest.mark.parametrize("at", [1, 4, 7])
def test_a_continued_run_rings_like_one_that_was_never_interrupted(tmp_path, whole, at):
    def press(iteration):
        if iteration == at:
            os.kill(os.getpid(), signal.SIGINT)

    assert start(settings(tmp_path), on_iteration=press)[0] == 130
    assert start(settings(tmp_path, resume="auto"))[0] == 0
    assert left(tmp_path) == left(whole[0]) and left(tmp_path, "alarms") == left(whole[0], "alarms")


def test_alarms_that_followed_a_checkpoint_are_forgotten_with_what_they_saw(tmp_path, whole):
    start(settings(tmp_path, logging__keep_last=9))
    first = settings(tmp_path, iterations=2, resume=str(tmp_path / "fake/checkpoints/000002"))
    start(first)
    assert len(left(tmp_path)) == 2 and left(tmp_path, "alarms") == []


def test_other_bounds_may_ring_in_what_is_on_record(tmp_path):
    start(settings(tmp_path, alarm__gap=None))
    assert not (tmp_path / "fake/alarms.jsonl").exists()
    start(settings(tmp_path, resume="auto"))
    assert [alarm["signal"] for alarm in left(tmp_path, "alarms")] == ["gap"]


def test_a_held_out_reward_is_asked_as_often_as_the_settings_say(tmp_path):
    start(settings(tmp_path, alarm__heldout_every=5))
    assert [row["iteration"] for row in left(tmp_path) if "heldout" in row] == [1, 6, 11]
    start(settings(tmp_path / "never", alarm__heldout_every=0))
    assert not any("heldout" in row for row in left(tmp_path / "never"))


def test_a_held_out_reward_that_fails_stops_nothing(tmp_path):
    def broken(samples, prompts):
        raise RuntimeError("the server is down")

    code, _ = start(settings(tmp_path), heldout=broken)
    rows = left(tmp_path)
    assert code == 0 and len(rows) == 12
    assert all(row["heldout"] is None and row["heldout/failed"] == 8 for row in rows)


def test_a_run_that_is_well_says_so_and_what_was_watched(tmp_path):
    def brightness(samples, prompts):
        return Scores(torch.stack([sample.image.mean() for sample in samples]))

    _, seen = start(settings(tmp_path), heldout=brightness)
    page = (tmp_path / "fake/report.html").read_text()
    assert "Alarm" not in seen and "No alarm rang." in page and 'class="mark"' not in page
    assert "Watched: the held-out reward of the training samples." in page
    start(settings(tmp_path / "blind"), heldout=None)
    page = (tmp_path / "blind/fake/report.html").read_text()
    assert "Reward hacking" not in page, "numbers that were never taken are no reassurance"


def test_the_settings_of_an_alarm_come_back_from_the_file(tmp_path, whole):
    from unirl_env.run.compose.yaml import read_yaml

    start(settings(tmp_path, alarm__stop=["gap", "saturation"], iterations=2))
    cfg = read_yaml(tmp_path / "fake/config.yaml")
    assert cfg.alarm.stop == ["gap", "saturation"] and cfg.alarm.patience == 2
    assert json.loads((whole[0] / "fake/alarms.jsonl").read_text().splitlines()[0])["sentence"]
