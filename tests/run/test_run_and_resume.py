import io
import json
import os
import signal

import pytest
import torch
from door_fakes import fake_parts, small_config
from rich.console import Console

from unirl_env.errors import CheckpointError, ConfigError
from unirl_env.run.compose.yaml import read_yaml
from unirl_env.run.launch import launch
from unirl_env.run.record import checkpoint as checkpoints
from unirl_env.run.record.logbook import read_rows

CLOCKS = ("seconds",)


def start(cfg, **options):
    """Run; the exit code and what a person saw."""
    stream = io.StringIO()
    code = launch(cfg, Console(file=stream, width=200), ["test"], fake_parts(**options))
    return code, stream.getvalue()


def curve(folder):
    return [
        {name: value for name, value in row.items() if name not in CLOCKS}
        for row in read_rows(folder / "metrics.jsonl")
    ]


def looks(folder):
    rows = read_rows(folder / "evaluation.jsonl")
    return [{name: value for name, value in row.items() if name not in CLOCKS} for row in rows]


class Killed(BaseException):
    """Stands for a process that ends without a word."""


def killer(at):
    def kill(iteration):
        if iteration == at:
            raise Killed

    return kill


def test_a_run_leaves_everything_that_is_promised(tmp_path):
    agents = []
    code, seen = start(small_config(tmp_path, logging__tensorboard=True), agents=agents)
    folder = tmp_path / "fake"
    assert code == 0
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "config.yaml",
        "provenance.json",
        "metrics.jsonl",
        "evaluation.jsonl",
        "tb",
        "checkpoints",
        "pictures",
        "report.html",
    }
    assert [row["iteration"] for row in read_rows(folder / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert [(r["iteration"], r["set"]) for r in read_rows(folder / "evaluation.jsonl")] == [
        (0, "train"),
        (0, "heldout"),
        (6, "train"),
        (6, "heldout"),
    ]
    assert len(list((folder / "pictures" / "000006" / "train").glob("*.png"))) == 4
    assert agents[0].stopped
    assert agents[0].exports == [str(folder / "adapters")]
    assert "report.html" in seen
    assert "unirl_env.evaluate --run" in seen
    assert read_yaml(folder / "config.yaml").iterations == 6


def test_before_and_after_are_compared_on_the_same_seeds(tmp_path):
    start(small_config(tmp_path))
    rows = read_rows(tmp_path / "fake" / "evaluation.jsonl")
    before, after = (row for row in rows if row["set"] == "train")
    gap = after["difference"]["reward"]
    assert gap["mean"] == pytest.approx(
        after["rewards"]["reward"]["mean"] - before["rewards"]["reward"]["mean"]
    )
    assert gap["mean"] > 0.01
    # Same noise on both sides: the difference is far better known than either mean.
    spread = after["rewards"]["reward"]["high"] - after["rewards"]["reward"]["low"]
    assert gap["high"] - gap["low"] < 0.5 * spread
    assert after["rewards"]["heldout"]["failed"] == 1


def test_a_second_run_takes_another_name_and_says_so(tmp_path):
    start(small_config(tmp_path))
    before = (tmp_path / "fake" / "metrics.jsonl").read_bytes()
    _, seen = start(small_config(tmp_path, iterations=2))
    assert (tmp_path / "fake-2" / "metrics.jsonl").exists()
    assert "fake-2" in seen
    assert (tmp_path / "fake" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("at", [1, 2, 3, 4, 6])
def test_a_killed_run_continues_to_the_same_curve(tmp_path, at):
    start(small_config(tmp_path / "whole", logging__eval_every=3))
    cfg = small_config(tmp_path / "cut", logging__eval_every=3)
    with pytest.raises(Killed):
        start(cfg, on_iteration=killer(at))
    code, _ = start(small_config(tmp_path / "cut", logging__eval_every=3, resume="auto"))
    assert code == 0
    assert curve(tmp_path / "cut/fake") == curve(tmp_path / "whole/fake")
    assert looks(tmp_path / "cut/fake") == looks(tmp_path / "whole/fake")
    one, _ = checkpoints.read(tmp_path / "cut/fake/checkpoints/000006")
    other, _ = checkpoints.read(tmp_path / "whole/fake/checkpoints/000006")
    assert all(torch.equal(one[name], other[name]) for name in other)
    scores = [
        [(c.iteration, c.score) for c in checkpoints.listing(tmp_path / x / "fake/checkpoints")]
        for x in ("cut", "whole")
    ]
    assert scores[0] == scores[1]


def test_a_run_continues_from_a_named_older_checkpoint(tmp_path):
    start(small_config(tmp_path, logging__keep_last=9))
    folder = tmp_path / "fake"
    before = curve(folder)
    cfg = small_config(tmp_path, logging__keep_last=9, resume=str(folder / "checkpoints" / "000002"))
    _, seen = start(cfg)
    assert "after iteration 2" in seen
    assert curve(folder) == before
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["000002", "000004", "000006", "aside-000004", "aside-000006"]


def test_more_iterations_are_the_same_run_going_on(tmp_path):
    start(small_config(tmp_path / "whole", iterations=9))
    start(small_config(tmp_path / "cut", iterations=6))
    start(small_config(tmp_path / "cut", iterations=9, resume="auto"))
    assert curve(tmp_path / "cut/fake") == curve(tmp_path / "whole/fake")


def test_fewer_iterations_than_are_done_are_refused(tmp_path):
    start(small_config(tmp_path))
    with pytest.raises(ConfigError, match="`iterations` must be at least the 6"):
        start(small_config(tmp_path, iterations=3, resume="auto"))


def test_a_finished_run_that_is_continued_only_writes_its_report(tmp_path):
    start(small_config(tmp_path))
    before = (tmp_path / "fake" / "metrics.jsonl").read_bytes()
    (tmp_path / "fake" / "report.html").unlink()
    assert start(small_config(tmp_path, resume="auto"))[0] == 0
    assert (tmp_path / "fake" / "report.html").exists()
    assert (tmp_path / "fake" / "metrics.jsonl").read_bytes() == before


def test_a_damaged_checkpoint_is_passed_over_aloud(tmp_path):
    start(small_config(tmp_path))
    folder = tmp_path / "fake"
    expected = curve(folder)
    (folder / "checkpoints/000006/tensors.safetensors").write_bytes(b"gone")
    _, seen = start(small_config(tmp_path, resume="auto"))
    assert "Passed over" in seen
    assert "after iteration 4" in seen
    assert curve(folder) == expected


def test_a_damaged_checkpoint_that_is_asked_for_is_an_error(tmp_path):
    start(small_config(tmp_path))
    path = tmp_path / "fake/checkpoints/000006"
    (path / "tensors.safetensors").write_bytes(b"gone")
    with pytest.raises(CheckpointError, match=r"tensors\.safetensors.*older checkpoint"):
        start(small_config(tmp_path, resume=str(path)))


@pytest.mark.parametrize(
    ("change", "name"),
    [({"agent__lr": 1e-5}, "agent.lr"), ({"seed": 3}, "seed"), ({"reward__train": "other"}, "reward.train")],
)
def test_other_mathematics_is_another_run(tmp_path, change, name):
    start(small_config(tmp_path))
    with pytest.raises(ConfigError, match=name):
        start(small_config(tmp_path, resume="auto", iterations=8, **change))


def test_other_machines_are_the_same_run(tmp_path):
    start(small_config(tmp_path))
    changes = {"agent__micro_batch_size": 4, "rollout__num_env_runners": 2, "logging__keep_last": 5}
    assert start(small_config(tmp_path, resume="auto", iterations=8, **changes))[0] == 0


def test_another_model_behind_the_same_name_is_refused(tmp_path):
    start(small_config(tmp_path))
    note = tmp_path / "fake/provenance.json"
    note.write_text(note.read_text().replace('"model": "fake"', '"model": "real"'))
    with pytest.raises(ConfigError, match="sources it began with, got another model"):
        start(small_config(tmp_path, resume="auto", iterations=8))


def test_resume_auto_begins_where_there_is_nothing(tmp_path):
    code, seen = start(small_config(tmp_path, resume="auto"))
    assert code == 0
    assert "beginning one" in seen


@pytest.mark.parametrize("at", [0, 1, 4])
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, at):
    def press(iteration):
        if iteration == at:
            os.kill(os.getpid(), signal.SIGINT)

    start(small_config(tmp_path / "whole"))
    cfg = small_config(tmp_path / "cut")
    options = {"on_iteration": press}
    if at == 0:  # before the first iteration, while the base is evaluated
        from door_fakes import FakeAgent

        original = FakeAgent.rollout_eval

        def evaluate(self, *args, **kwargs):
            press(0)
            return original(self, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FakeAgent, "rollout_eval", evaluate)
            code, seen = start(cfg)
    else:
        code, seen = start(cfg, **options)
    folder = tmp_path / "cut/fake"
    assert code == 130
    assert f"resume={folder}" in seen
    assert len(curve(folder)) == at
    assert start(small_config(tmp_path / "cut", resume=str(folder)))[0] == 0
    assert curve(folder) == curve(tmp_path / "whole/fake")
    assert looks(folder) == looks(tmp_path / "whole/fake")


def test_sigterm_is_heard_like_ctrl_c(tmp_path):
    before = signal.getsignal(signal.SIGTERM)  # Ray's own, if an earlier test of this process started it
    code, _ = start(
        small_config(tmp_path),
        on_iteration=lambda i: os.kill(os.getpid(), signal.SIGTERM) if i == 2 else None,
    )
    assert code == 130
    assert len(curve(tmp_path / "fake")) == 2
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_could_not_begin_leaves_no_folder(tmp_path):
    def broken(cfg):
        raise CheckpointError("no model")

    with pytest.raises(CheckpointError):
        launch(small_config(tmp_path), Console(file=io.StringIO()), [], broken)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_cannot_share_a_folder(tmp_path):
    start(small_config(tmp_path))
    from unirl_env.run.record.folder import RunFolder

    with RunFolder(tmp_path / "fake").lock(), pytest.raises(ConfigError, match="one process"):
        start(small_config(tmp_path, resume="auto"))


def test_provenance_names_versions_sources_and_every_start(tmp_path):
    start(small_config(tmp_path))
    start(small_config(tmp_path, resume="auto", iterations=7))
    known = json.loads((tmp_path / "fake/provenance.json").read_text())
    assert set(known["sources"]) == {"seed", "model", "prompts.train", "prompts.heldout"}
    assert [entry["iteration"] for entry in known["sessions"]] == [0, 6]
    assert known["sessions"][0]["versions"]["torch"] == torch.__version__.split("+")[0]


def test_the_best_checkpoint_is_that_of_the_best_evaluation(tmp_path):
    start(small_config(tmp_path, logging__eval_every=2, logging__keep_last=1))
    kept = checkpoints.listing(tmp_path / "fake/checkpoints")
    assert [c.iteration for c in kept] == [6]
    rows = [r for r in read_rows(tmp_path / "fake/evaluation.jsonl") if r["set"] == "train"]
    assert kept[0].score == pytest.approx(rows[-1]["rewards"]["reward"]["mean"])
