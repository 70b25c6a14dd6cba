import json
import os

import pytest
import torch

from unirl_env.errors import CheckpointError
from unirl_env.run.record import checkpoint as checkpoints

STATE = {"weight": torch.arange(6.0).reshape(2, 3), "half": torch.ones(2, dtype=torch.bfloat16)}


def test_what_is_written_is_read_again(tmp_path):
    written = checkpoints.write(tmp_path, 7, STATE, {"counter": 3}, score=0.5)
    tensors, meta = checkpoints.read(written.path)
    assert meta == {"counter": 3}
    assert torch.equal(tensors["weight"], STATE["weight"])
    assert tensors["half"].dtype == torch.bfloat16
    assert (written.iteration, written.score) == (7, 0.5)


def test_views_of_one_storage_and_strided_tensors_are_kept(tmp_path):
    rows = torch.arange(12.0).reshape(3, 4)
    written = checkpoints.write(tmp_path, 1, {"all": rows, "part": rows[1], "turned": rows.T}, {})
    tensors, _ = checkpoints.read(written.path)
    assert torch.equal(tensors["turned"], rows.T)
    assert torch.equal(tensors["part"], rows[1])


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_flipped_byte_is_found_and_named(tmp_path, name):
    path = checkpoints.write(tmp_path, 1, STATE, {"a": 1}).path
    data = bytearray((path / name).read_bytes())
    data[-2] ^= 1
    (path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=f"(?s){name}.*resume=auto"):
        checkpoints.read(path)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_missing_file_is_named(tmp_path, name):
    path = checkpoints.write(tmp_path, 1, STATE, {}).path
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        checkpoints.read(path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 1}', '{"format": 9, "iteration": 1, "score": 1, "files": {}}']
)
def test_a_manifest_that_says_nothing_useful_is_an_error(tmp_path, text):
    path = checkpoints.write(tmp_path, 1, STATE, {}).path
    (path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        checkpoints.read(path)


def test_a_write_that_is_cut_short_leaves_the_older_checkpoint_and_nothing_else(tmp_path, monkeypatch):
    checkpoints.write(tmp_path, 1, STATE, {})

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        checkpoints.write(tmp_path, 2, STATE, {})
    monkeypatch.undo()
    found, warnings = checkpoints.newest(tmp_path)
    assert found.iteration == 1
    assert warnings == []
    checkpoints.prune(tmp_path, keep_last=3)
    assert [path.name for path in tmp_path.iterdir()] == ["000001"]


def test_the_newest_sound_checkpoint_is_found_behind_a_damaged_one(tmp_path):
    for iteration in (1, 2, 3):
        checkpoints.write(tmp_path, iteration, STATE, {})
    (tmp_path / "000003" / "tensors.safetensors").write_bytes(b"")
    found, warnings = checkpoints.newest(tmp_path)
    assert found.iteration == 2
    assert len(warnings) == 1
    assert "000003" in warnings[0]


def test_a_damaged_checkpoint_is_written_anew_and_a_sound_one_is_left(tmp_path):
    path = checkpoints.write(tmp_path, 1, STATE, {"first": True}).path
    checkpoints.write(tmp_path, 1, STATE, {"first": False})
    assert checkpoints.read(path)[1] == {"first": True}
    (path / "state.json").write_text("{}")
    checkpoints.write(tmp_path, 1, STATE, {"first": False})
    assert checkpoints.read(path)[1] == {"first": False}


def test_the_last_ones_and_the_best_one_are_kept(tmp_path):
    for iteration, score in ((1, 0.1), (2, 0.9), (3, None), (4, 0.3), (5, 0.2)):
        checkpoints.write(tmp_path, iteration, STATE, {}, score)
        checkpoints.prune(tmp_path, keep_last=2)
    assert [c.iteration for c in checkpoints.listing(tmp_path)] == [2, 4, 5]
    assert checkpoints.best(tmp_path).iteration == 2


def test_a_score_that_is_no_number_is_no_score(tmp_path):
    checkpoints.write(tmp_path, 1, STATE, {}, float("nan"))
    assert checkpoints.best(tmp_path) is None
    checkpoints.set_score(checkpoints.listing(tmp_path)[0], 0.4)
    assert checkpoints.best(tmp_path).score == 0.4
    checkpoints.read(tmp_path / "000001")


def test_meta_that_is_not_json_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="JSON"):
        checkpoints.write(tmp_path, 1, STATE, {"tensor": torch.ones(1)})
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_names_every_file(tmp_path):
    path = checkpoints.write(tmp_path, 1, STATE, {}).path
    files = json.loads((path / "manifest.json").read_text())["files"]
    assert set(files) | {"manifest.json"} == {p.name for p in path.iterdir()}
