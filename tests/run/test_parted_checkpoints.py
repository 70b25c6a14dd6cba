"""Checkpoints that learners write in parts, while a run goes on: whole as a whole, or not there."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
from door_fakes import darkness, fake_parts, small_config
from parted_agent import PartedAgent
from rich.console import Console

from unirl_env.errors import CheckpointError, DiskError
from unirl_env.run.agent_setup import Parts
from unirl_env.run.launch import launch
from unirl_env.run.record import checkpoint as checkpoints
from unirl_env.run.record.logbook import read_rows

KILLED = """
import os, signal, sys
import safetensors.torch
from rich.console import Console
from door_fakes import small_config
from test_parted_checkpoints import build
from unirl_env.run.launch import launch
from unirl_env.run.record import checkpoint

place, name, call = {moment}
original, calls = getattr(place, name), []

def killed(*arguments, **options):
    calls.append(1)
    if len(calls) == call:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)

setattr(place, name, killed)
sys.exit(launch(small_config(sys.argv[1]), Console(), [], build()))
"""
MOMENTS = {
    "between two files": "safetensors.torch, 'save', 4",  # a state takes two
    "when all parts are there": "checkpoint, 'finish', 2",
    "before it has its name": "checkpoint.Path, 'rename', 2",
}


def build(agents=None, way="parted"):
    def parts(cfg):
        agent = PartedAgent(cfg.seed, way)
        if agents is not None:
            agents.append(agent)
        return Parts(agent, darkness, {"model": "fake"})

    return parts


def run(folder, made=None, **settings):
    quiet = Console(file=io.StringIO())
    return launch(small_config(folder, **settings), quiet, [], build() if made is None else made)


def rewards(folder):
    return [(row["iteration"], row["reward"]) for row in read_rows(folder / "fake" / "metrics.jsonl")]


def listed(folder):
    return [found.iteration for found in checkpoints.listing(folder / "fake" / "checkpoints")]


def test_a_run_saves_in_parts_what_it_would_save_whole(tmp_path):
    agents = []
    assert run(tmp_path / "parted", build(agents), logging__keep_last=2) == 0
    run(tmp_path / "whole", fake_parts(), logging__keep_last=2)
    assert rewards(tmp_path / "parted") == rewards(tmp_path / "whole")
    assert listed(tmp_path / "parted") == listed(tmp_path / "whole")
    assert agents[0].shared == [tmp_path / "parted" / "fake"]
    (mine, theirs) = (
        checkpoints.best(tmp_path / way / "fake" / "checkpoints") for way in ("parted", "whole")
    )
    assert (mine.iteration, mine.score) == (theirs.iteration, theirs.score)
    names = {path.name for path in mine.path.iterdir()} - {"state.json", "manifest.json"}
    assert len(names) == 2
    assert all(checkpoints.PART.fullmatch(name) for name in names), "nothing is pickled"


@pytest.mark.parametrize("ways", ["parted parted", "parted whole", "whole parted"])
def test_either_form_is_gone_on_from_by_either(tmp_path, ways):
    first, second = (build(way=way) for way in ways.split())
    run(tmp_path / "cut", first, iterations=4)
    run(tmp_path / "cut", second, iterations=6, resume="auto")
    run(tmp_path / "straight", fake_parts())
    assert rewards(tmp_path / "cut") == rewards(tmp_path / "straight")


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_in_the_middle_of_writing_loses_nothing(tmp_path, moment):
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.run(
        [sys.executable, "-c", KILLED.format(moment=MOMENTS[moment]), str(tmp_path / "cut")],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    folder = tmp_path / "cut" / "fake" / "checkpoints"
    assert listed(tmp_path / "cut") == [2]
    (draft,) = folder.glob(".draft-*")
    written = [path for path in draft.glob("shard-*") if path.stat().st_size]
    assert len(written) == (1 if moment == "between two files" else 2)
    assert run(tmp_path / "cut", resume="auto") == 0
    assert not list(folder.glob(".*")), "what a kill left over is taken away"
    run(tmp_path / "whole", fake_parts())
    assert rewards(tmp_path / "cut") == rewards(tmp_path / "whole")


def test_a_full_disk_is_named_and_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    original, calls = safetensors.torch.save, []

    def full(*arguments, **options):
        calls.append(1)
        if len(calls) >= 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments, **options)

    monkeypatch.setattr(safetensors.torch, "save", full)
    with pytest.raises(DiskError, match="make room"):
        run(tmp_path)
    assert listed(tmp_path) == [2]
    assert not list((tmp_path / "fake" / "checkpoints").glob(".draft-*"))


def test_what_lies_in_a_checkpoint_of_parts_must_be_its_own(tmp_path):
    run(tmp_path)
    path = checkpoints.listing(tmp_path / "fake" / "checkpoints")[-1].path
    part = min(path.glob("shard-*"))
    (path / "shard-00009-model-00001-of-00001.safetensors").write_bytes(part.read_bytes())
    with pytest.raises(CheckpointError, match="no tensors but its own, got shard-00009"):
        checkpoints.read(path)
    (path / "shard-00009-model-00001-of-00001.safetensors").unlink()
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match="other contents"):
        checkpoints.read(path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../../elsewhere.safetensors"] = manifest["files"].pop(part.name)
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="no entry for parts"):
        checkpoints.read(path)


def test_parts_that_the_driver_does_not_see_make_no_checkpoint(tmp_path):
    draft = checkpoints.begin(tmp_path, 1)
    name = "shard-00001-model-00001-of-00001.safetensors"
    with pytest.raises(CheckpointError, match=r"no such file.*`logging\.folder`"):
        checkpoints.finish(draft, 1, {name: {"bytes": 8, "sha256": "0"}}, {})
    assert not list(tmp_path.iterdir())
