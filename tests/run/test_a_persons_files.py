"""What lies in a run's folder under names of a person's own, and links."""

import io
import json
import os
import shutil

import pytest
import torch
from door_fakes import fake_parts, small_config
from PIL import Image
from rich.console import Console

from unirl_env.errors import CheckpointError, ConfigError
from unirl_env.run.comparison import Options, compare
from unirl_env.run.launch import launch
from unirl_env.run.record import checkpoint as checkpoints
from unirl_env.run.record.files import iteration_of
from unirl_env.run.record.folder import RunFolder, free_name, locate
from unirl_env.run.record.logbook import read_rows
from unirl_env.run.record.samples import picture_paths, save_samples, thin_out
from unirl_env.run.report import write_report
from unirl_env.types import Sample

STATE = {"weight": torch.arange(4.0)}


def start(cfg, **options):
    stream = io.StringIO()
    return launch(cfg, Console(file=stream, width=300), ["test"], fake_parts(**options)), stream.getvalue()


def curve(folder):
    return [(row["iteration"], row["reward"]) for row in read_rows(folder / "metrics.jsonl")]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("000003", 3),
        ("000000", 0),
        ("999999", 999999),
        ("1000000", 1000000),
        ("0000003", None),
        ("3", None),
        ("00003", None),
        ("000003.bak", None),
        ("000003-hf", None),
        ("٠٠٠٠٠٣", None),
        ("000003\n", None),
        ("latest", None),
        ("1" * 30, None),
    ],
)
def test_names_of_iterations(name, number):
    assert iteration_of(name) == number


def litter(run):
    """Things that people put into a run's folder."""
    checkpoint = next(path for path in sorted((run / "checkpoints").iterdir()))
    for place in ("000001.bak", "000004-hf", "0000004", "1", "best", ".gone-fishing", ".draft-of-a-mail"):
        shutil.copytree(checkpoint, run / "checkpoints" / place)
    for place in ("checkpoints/notes.txt", "checkpoints/7", "checkpoints/000099", "notes.txt"):
        (run / place).write_text("mine")
    (run / "checkpoints/000098").mkdir()
    (run / "checkpoints/000098/plan.md").write_text("mine")
    shutil.copytree(checkpoint, run / "checkpoints/000097")
    (run / "checkpoints/latest").symlink_to(checkpoint.name)
    (run / "checkpoints/nowhere").symlink_to("gone")
    pictures = run / "pictures"
    shutil.copytree(pictures / "000000", pictures / "000000.bak")
    shutil.copytree(pictures / "000000", pictures / "first")
    for place in ("000000/train/my-notes.png", "000000/train/000-0.txt", "000000/train/a-1-2.png", "7"):
        (pictures / place).write_text("mine")
    (pictures / "000000/other").mkdir()
    (pictures / "000000/train/further").mkdir()
    (pictures / "000000/train/further/000-0-x.png").write_text("mine")
    Image.new("RGB", (4, 4)).save(pictures / "000000/train/000-0 copy.png")


def everything(run):
    return {path for path in run.rglob("*")}


def test_what_a_person_puts_beside_is_left_alone_and_breaks_nothing(tmp_path):
    settings = {"logging__eval_every": 2, "logging__checkpoint_every": 1, "logging__keep_last": 1}
    start(small_config(tmp_path / "whole", iterations=12, **settings))
    start(small_config(tmp_path / "mine", iterations=4, **settings))
    run = tmp_path / "mine/fake"
    before = everything(run)
    litter(run)
    own = everything(run) - before
    code, seen = start(small_config(tmp_path / "mine", iterations=12, resume="auto", **settings))
    assert code == 0 and "after iteration 4" in seen
    assert "000097" in seen and "perhaps a copy" in seen  # It has a name of ours, and is none of ours.
    assert own <= everything(run)
    assert curve(run) == curve(tmp_path / "whole/fake")
    write_report(RunFolder(run))
    compare(str(run), Options(), Console(file=io.StringIO()), fake_parts())
    assert own <= everything(run)
    assert [c.iteration for c in checkpoints.listing(run / "checkpoints")] == [12]


def test_a_backup_can_be_gone_on_from_by_its_name(tmp_path):
    start(small_config(tmp_path))
    run = tmp_path / "fake"
    expected = curve(run)
    shutil.copytree(run / "checkpoints/000004", run / "checkpoints/before-the-storm")
    _, seen = start(small_config(tmp_path, resume=str(run / "checkpoints/before-the-storm")))
    assert "after iteration 4" in seen
    assert curve(run) == expected


def test_a_persons_file_inside_a_checkpoint_outlives_it(tmp_path):
    for iteration in (1, 2, 3):
        checkpoints.write(tmp_path, iteration, STATE, {})
    (tmp_path / "000001/notes.txt").write_text("mine")
    checkpoints.prune(tmp_path, keep_last=1)
    checkpoints.prune(tmp_path, keep_last=1)
    assert (tmp_path / "000001/notes.txt").read_text() == "mine"
    assert not (tmp_path / "000001/tensors.safetensors").exists()
    assert not (tmp_path / "000002").exists()
    assert checkpoints.newest(tmp_path)[1] == []


def test_checkpoints_are_ordered_by_number(tmp_path):
    for iteration in (999999, 1000000, 1000001):
        checkpoints.write(tmp_path, iteration, STATE, {})
    assert checkpoints.newest(tmp_path)[0].iteration == 1000001
    checkpoints.prune(tmp_path, keep_last=2)
    assert [c.iteration for c in checkpoints.listing(tmp_path)] == [1000000, 1000001]


def test_a_removal_that_was_cut_short_is_finished(tmp_path):
    for iteration in (1, 2, 3):
        checkpoints.write(tmp_path, iteration, STATE, {})
    shutil.copytree(tmp_path / "000001", tmp_path / ".gone-000001")
    checkpoints.prune(tmp_path, keep_last=1)
    assert [path.name for path in tmp_path.iterdir()] == ["000003"]


def test_a_checkpoint_on_another_disk_is_read_by_its_link_and_unlinked(tmp_path):
    start(small_config(tmp_path, logging__keep_last=9))
    run, far = tmp_path / "fake", tmp_path / "far"
    far.mkdir()
    for name in ("000004", "000006"):
        shutil.move(run / "checkpoints" / name, far / name)
        (run / "checkpoints" / name).symlink_to(far / name)
    _, seen = start(small_config(tmp_path, resume="auto", iterations=10, logging__keep_last=1))
    assert "after iteration 6" in seen
    assert not os.path.lexists(run / "checkpoints/000004")
    for name in ("000004", "000006"):
        checkpoints.check(far / name)


def test_a_link_to_a_disk_that_is_gone_is_passed_over_aloud(tmp_path):
    start(small_config(tmp_path))
    run = tmp_path / "fake"
    expected = curve(run)
    shutil.rmtree(run / "checkpoints/000006")
    (run / "checkpoints/000006").symlink_to(tmp_path / "unplugged")
    code, seen = start(small_config(tmp_path, resume="auto"))
    assert code == 0
    assert "link to" in seen and "unplugged" in seen and "after iteration 4" in seen
    assert curve(run) == expected
    assert checkpoints.newest(run / "checkpoints")[0].iteration == 6


def test_links_to_runs_and_checkpoints_are_followed(tmp_path):
    start(small_config(tmp_path))
    run = tmp_path / "fake"
    (tmp_path / "latest").symlink_to("fake")
    (tmp_path / "circle").symlink_to("circle")
    (run / "latest").symlink_to("checkpoints/000006")
    (run / "checkpoints/latest").symlink_to("000006")
    (tmp_path / "elsewhere").symlink_to(run / "checkpoints/000006")
    for path in ("fake/latest", "fake/checkpoints/latest", "latest/checkpoints/000006", "elsewhere"):
        folder, chosen = locate(str(tmp_path / path))
        assert folder == RunFolder(run), path
        assert checkpoints.describe(chosen).iteration == 6
    assert locate(str(tmp_path / "latest")) == (RunFolder(run), None)
    for wrong in ("circle", "fake/checkpoints/000099"):
        with pytest.raises(CheckpointError, match="`resume` must be"):
            locate(str(tmp_path / wrong))
    assert (
        start(small_config(tmp_path, iterations=8, logging__keep_last=9, resume=str(tmp_path / "latest")))[0]
        == 0
    )
    assert (
        start(small_config(tmp_path, iterations=9, logging__keep_last=9, name="latest", resume="auto"))[0]
        == 0
    )
    assert len(curve(run)) == 9
    assert start(small_config(tmp_path, iterations=10, resume=str(run / "checkpoints/latest")))[0] == 0


def test_a_run_on_another_disk_keeps_the_name_of_its_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/fake").symlink_to(tmp_path / "disk")
    start(small_config(tmp_path / "runs", iterations=2))
    assert len(curve(tmp_path / "disk")) == 2
    assert start(small_config(tmp_path / "runs", iterations=4, resume="auto"))[0] == 0
    assert locate(str(tmp_path / "runs/fake"))[0] == RunFolder(tmp_path / "runs/fake")
    shutil.rmtree(tmp_path / "disk")
    assert free_name(tmp_path / "runs", "fake") == "fake-2"


def test_a_start_that_fails_takes_away_its_own_files_only(tmp_path):
    def broken(cfg):
        (tmp_path / "fake/notes.txt").write_text("mine")
        raise CheckpointError("no model")

    (tmp_path / "fake").mkdir()
    (tmp_path / "fake/.hidden").write_text("mine")
    with pytest.raises(CheckpointError):
        launch(small_config(tmp_path), Console(file=io.StringIO()), [], broken)
    assert sorted(path.name for path in (tmp_path / "fake").iterdir()) == [".hidden", "notes.txt"]


def test_the_second_resume_from_an_old_checkpoint_keeps_what_the_first_set_aside(tmp_path):
    cfg = {"logging__keep_last": 9, "resume": str(tmp_path / "fake/checkpoints/000002")}
    start(small_config(tmp_path, logging__keep_last=9))
    start(small_config(tmp_path, **cfg))
    start(small_config(tmp_path, **cfg))
    names = {path.name for path in (tmp_path / "fake/checkpoints").iterdir()}
    assert {"aside-000004", "aside-000004-2", "aside-000006", "aside-000006-2"} <= names


def test_pictures_are_thinned_by_name_only(tmp_path):
    samples = [Sample(image=torch.zeros(3, 4, 4)) for _ in range(4)]
    for iteration in ("000001", "000002", "1000000"):
        save_samples(tmp_path / iteration / "train", samples, 2)
    shutil.copytree(tmp_path / "000001", tmp_path / "000001-kept")
    thin_out(tmp_path, "train", keep=(0, 1000000))
    assert len(picture_paths(tmp_path / "000001/train")) == 2
    assert len(picture_paths(tmp_path / "000001-kept/train")) == 4
    assert len(picture_paths(tmp_path / "1000000/train")) == 4


def test_an_export_takes_nobodys_folder(tmp_path):
    start(small_config(tmp_path))
    agents, quiet = [], Console(file=io.StringIO())
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.safetensors").write_text("mine")
    with pytest.raises(ConfigError, match="`--export` must name a folder that is empty"):
        compare(str(tmp_path / "fake"), Options(export=tmp_path / "model"), quiet, fake_parts(agents=agents))
    assert agents == []
    (tmp_path / "site").mkdir()
    (tmp_path / "site/index.html").write_text("mine")
    with pytest.raises(ConfigError, match="`--out` must name a folder"):
        compare(str(tmp_path / "fake"), Options(out=tmp_path / "site"), quiet, fake_parts(agents=agents))
    out = Options(out=tmp_path / "out")
    compare(str(tmp_path / "fake"), out, quiet, fake_parts())
    compare(str(tmp_path / "fake"), out, quiet, fake_parts())  # Its own, again.
    assert (tmp_path / "out/comparison.json").exists()


def test_a_start_that_was_killed_before_its_settings_is_begun_again(tmp_path):
    (tmp_path / "fake").mkdir()
    stale = {"sources": {"seed": 99}, "sessions": [{"begun": "once"}]}
    (tmp_path / "fake/provenance.json").write_text(json.dumps(stale))
    (tmp_path / "fake/.lock").touch()
    assert free_name(tmp_path, "fake") == "fake"
    assert start(small_config(tmp_path, resume="auto"))[0] == 0
    found = json.loads((tmp_path / "fake/provenance.json").read_text())
    assert found["sources"]["seed"] == 0 and len(found["sessions"]) == 1
