"""Errors in the middle of a run: what is finished is saved, and a person learns why and how to go on."""

import errno
import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from door_fakes import FakeAgent, fake_parts, small_config
from rich.console import Console
from safetensors import SafetensorError

from unirl_env.errors import ContractError, DiskError, NoAnswer, OutOfMemory, ScorerError
from unirl_env.run import interrupt as stopping
from unirl_env.run.agent_setup import Parts
from unirl_env.run.entry import Lasting, guarded
from unirl_env.run.failure import explained
from unirl_env.run.launch import launch
from unirl_env.run.record import checkpoint as checkpoints
from unirl_env.run.record.logbook import read_rows


class HonestAgent(FakeAgent):
    """Fails in its rollout or in the middle of its update, and says what its weights are worth."""

    def __init__(self, seed=0, at=4, error=None, where="rollout"):
        super().__init__(seed)
        self.at, self.error, self.where, self.updating = at, error, where, False

    def train(self):
        if self.iteration + 1 == self.at:
            self.updating = self.where == "update"
            if self.updating:
                self.weight = self.weight + 1
            self.error() if callable(self.error) and not isinstance(self.error, type) else None
            raise self.error
        return super().train()

    def holds(self, iteration):
        return self.iteration == iteration and not self.updating


def start(cfg, **options):
    stream = io.StringIO()
    parts = Parts(HonestAgent(cfg.seed, **options), None, {"model": "fake"})
    try:
        return launch(cfg, Console(file=stream, width=300), ["test"], lambda cfg: parts), stream.getvalue()
    except BaseException as error:
        return error, stream.getvalue()


def go_on(folder, **changes):
    cfg = small_config(folder, resume="auto", logging__checkpoint_every=3, **changes)
    assert launch(cfg, Console(file=io.StringIO()), [], fake_parts()) == 0
    return rewards(folder)


def rewards(folder):
    return [(row["iteration"], row["reward"]) for row in read_rows(folder / "fake/metrics.jsonl")]


@pytest.fixture
def whole(tmp_path):
    launch(small_config(tmp_path / "whole"), Console(file=io.StringIO()), [], fake_parts())
    return rewards(tmp_path / "whole")


@pytest.mark.parametrize(
    ("error", "told", "word"),
    [
        (ScorerError("the budget of 5 $ is spent"), ScorerError, "budget"),
        (SystemExit(0), ContractError, "SystemExit"),
        (MemoryError(), OutOfMemory, "memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), OutOfMemory, "micro_batch_size"),
        (OSError(errno.ENOSPC, "No space left on device"), DiskError, "make room"),
        (ValueError("a user's own mistake"), ValueError, "own mistake"),
    ],
)
@pytest.mark.parametrize("where", ["rollout", "update"])
def test_an_error_saves_what_is_finished_where_the_weights_are_sound(
    tmp_path, whole, error, told, word, where
):
    cfg = small_config(tmp_path / "cut", logging__checkpoint_every=2)
    found, seen = start(cfg, error=error, where=where)
    assert type(found) is told and word in str(found)
    newest, _ = checkpoints.newest(tmp_path / "cut/fake/checkpoints")
    assert newest.iteration == (3 if where == "rollout" else 2)
    assert "Stopped in iteration 4 of 6" in seen and f"resume={tmp_path / 'cut/fake'}" in seen
    assert ("iteration 3 is saved" in seen) == (where == "rollout")
    assert go_on(tmp_path / "cut") == whole


def test_an_interrupt_from_inside_is_one(tmp_path, whole):
    code, seen = start(small_config(tmp_path / "cut"), error=KeyboardInterrupt())
    assert code == 130 and "iteration 3 is saved" in seen
    assert go_on(tmp_path / "cut") == whole


def test_an_error_of_an_evaluation_saves_the_iteration_before_it(tmp_path, whole, monkeypatch):
    cfg = small_config(tmp_path / "cut", logging__eval_every=3, logging__checkpoint_every=5)
    original = FakeAgent.rollout_eval

    def broken(self, *args, base=False, **kwargs):
        if self.iteration:
            raise ScorerError("the judge is ill")
        return original(self, *args, base=base, **kwargs)

    monkeypatch.setattr(FakeAgent, "rollout_eval", broken)
    found, seen = start(cfg, at=99)
    monkeypatch.undo()
    assert isinstance(found, ScorerError) and "iteration 3 is saved" in seen
    assert go_on(tmp_path / "cut", logging__eval_every=3) == whole


def test_before_the_first_iteration_there_is_nothing_to_save(tmp_path):
    found, seen = start(small_config(tmp_path), at=1, error=ScorerError("no"))
    assert isinstance(found, ScorerError)
    assert "there is no checkpoint yet" in seen


def test_a_run_that_stopped_before_anything_was_finished_begins_again(tmp_path, monkeypatch):
    def broken(self, *args, **kwargs):
        raise ScorerError("the judge is ill")

    monkeypatch.setattr(FakeAgent, "rollout_eval", broken)
    found, seen = start(small_config(tmp_path))
    monkeypatch.undo()
    assert isinstance(found, ScorerError) and list(tmp_path.iterdir()) == []
    assert "the same command begins again" in seen and "resume=" not in seen


def test_what_follows_from_an_error_does_not_hide_it(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    found, seen = start(small_config(tmp_path), error=ScorerError("no"))
    monkeypatch.undo()
    assert isinstance(found, DiskError)  # The base could not even be written down.
    assert "Not saved" not in seen or "DiskError" in seen


def test_a_full_disk_loses_no_older_checkpoint_and_says_what_to_do(tmp_path, whole, monkeypatch):
    original = checkpoints.save_file

    def full(tensors, path):
        if "000004" in str(path):
            Path(path).write_bytes(b"half")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        return original(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", full)
    found, seen = start(small_config(tmp_path / "cut"), at=99)
    monkeypatch.undo()
    folder = tmp_path / "cut/fake/checkpoints"
    assert isinstance(found, DiskError) and found.errno == errno.ENOSPC
    assert str(folder) in str(found) and "MiB free" in str(found) and "keep_last" in str(found)
    assert "newest checkpoint is that of iteration 2" in seen and "2 iterations will be done again" in seen
    assert [path.name for path in folder.iterdir()] == ["000002"]
    assert go_on(tmp_path / "cut") == whole


def test_a_full_disk_leaves_the_settings_as_they_were(tmp_path, monkeypatch):
    start(small_config(tmp_path), at=99)
    before = (tmp_path / "fake/config.yaml").read_bytes()

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    found, _ = start(small_config(tmp_path, resume="auto", iterations=9))
    assert isinstance(found, DiskError)
    assert (tmp_path / "fake/config.yaml").read_bytes() == before


def test_no_sound_checkpoint_sets_the_rows_aside_aloud(tmp_path, whole):
    start(small_config(tmp_path / "cut"), at=99)
    run = tmp_path / "cut/fake"
    for place in (run / "checkpoints").iterdir():
        (place / "tensors.safetensors").write_bytes(b"gone")
    before = rewards(tmp_path / "cut")
    stream = io.StringIO()
    launch(small_config(tmp_path / "cut", resume="auto"), Console(file=stream, width=300), [], fake_parts())
    assert "No sound checkpoint" in stream.getvalue() and "6 iterations on record" in stream.getvalue()
    assert rewards(tmp_path / "cut") == whole
    aside = [(row["iteration"], row["reward"]) for row in read_rows(run / "metrics.aside.jsonl")]
    assert aside == before
    assert [row["iteration"] for row in read_rows(run / "evaluation.aside.jsonl")] == [6, 6]


def test_rows_beyond_the_checkpoint_are_set_aside(tmp_path, whole):
    found, _ = start(
        small_config(tmp_path / "cut", logging__checkpoint_every=2), where="update", error=KeyError()
    )
    assert isinstance(found, KeyError)
    assert go_on(tmp_path / "cut") == whole
    assert [row["iteration"] for row in read_rows(tmp_path / "cut/fake/metrics.aside.jsonl")] == [3]


def test_tensorboard_shows_each_step_once_after_every_kind_of_stop(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"logging__tensorboard": True, "logging__eval_every": 2, "logging__checkpoint_every": 2}
    start(small_config(tmp_path, **settings), at=2, where="update", error=KeyError())  # before any checkpoint
    cfg = small_config(tmp_path, resume="auto", **settings)
    start(cfg, at=4, where="update", error=KeyError())  # one iteration after a checkpoint
    assert start(cfg, at=99)[0] == 0
    events = EventAccumulator(str(tmp_path / "fake/tb")).Reload()
    assert [event.step for event in events.Scalars("reward")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Scalars("evaluation/train/reward")] == [0, 2, 4, 6]


# Signals and hanging parts.


def test_sighup_is_heard_like_ctrl_c(tmp_path):
    def hang_up(iteration):
        if iteration == 2:
            os.kill(os.getpid(), signal.SIGHUP)

    code = launch(small_config(tmp_path), Console(file=io.StringIO()), [], fake_parts(hang_up))
    assert code == 130 and [i for i, _ in rewards(tmp_path)] == [1, 2]


def test_nohup_is_meant(tmp_path):
    def hang_up(iteration):
        if iteration == 2:
            os.kill(os.getpid(), signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert launch(small_config(tmp_path), Console(file=io.StringIO()), [], fake_parts(hang_up)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_scorer_that_hangs_is_noticed_and_named(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(stopping, "LOOK_EVERY", 0.05)

    def hang():
        threading.Event().wait(60)

    began = time.monotonic()
    found, seen = start(small_config(tmp_path / "cut", rollout__timeout_s=0.5), error=hang)
    assert time.monotonic() - began < 30
    assert type(found) is NoAnswer
    assert "rollout.timeout_s" in str(found) and "iteration 4" in str(found) and "threading.py" in str(found)
    assert "iteration 3 is saved" in seen
    assert go_on(tmp_path / "cut") == whole


def test_a_process_that_stands_still_is_named_and_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, "LOOK_EVERY", 0.05)
    monkeypatch.setattr(stopping, "STOPPED_FOR", 0.3)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"]) as process:
        process.send_signal(signal.SIGSTOP)
        monkeypatch.setattr("unirl_env.run.launch.processes", lambda agent: {"Runner 1": process.pid})
        found, seen = start(small_config(tmp_path), error=lambda: threading.Event().wait(60))
        assert type(found) is NoAnswer
        assert "Runner 1 must answer" in str(found) and f"kill -CONT {process.pid}" in str(found)
        assert "iteration 3 is saved" in seen
        assert process.wait(10) == -signal.SIGKILL


def test_a_short_pause_of_a_process_is_nobodys_business(monkeypatch):
    monkeypatch.setattr(stopping, "_is_stopped", lambda pid: True)
    dog = stopping.Watchdog(None, None)
    dog.processes = {"Learner 0": 1}
    with dog.over("iteration 1"):
        assert dog._look(stopping.STOPPED_FOR / 2) is None
        monkeypatch.setattr(stopping, "_is_stopped", lambda pid: False)
        assert dog._look(1.0) is None
        monkeypatch.setattr(stopping, "_is_stopped", lambda pid: True)
        assert dog._look(stopping.STOPPED_FOR / 2) is None
        assert "Learner 0" in dog._look(stopping.STOPPED_FOR / 2)
    assert dog._look(1e9) is None  # Between two pieces of work nothing is due.


# The door.


def test_an_exit_inside_a_command_is_no_success(capsys):
    def leave(console):
        raise SystemExit(0)

    assert guarded(leave) == 2
    assert "must return or raise" in " ".join(capsys.readouterr().err.split())


def test_a_reader_who_left_costs_nothing():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        console = Console(file=Lasting(stream))
        for _ in range(3):
            console.print("x\n" * 50_000, highlight=False)
        stream.flush()  # It leads nowhere by now.


def test_errors_of_a_users_files_stay_theirs(tmp_path):
    mine = FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "x"))
    assert explained(mine, tmp_path) is mine
    elsewhere = PermissionError(errno.EACCES, "Permission denied", "/root/x")
    assert explained(elsewhere, tmp_path) is elsewhere
    ours = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "x"))
    assert isinstance(explained(ours, tmp_path), DiskError)
