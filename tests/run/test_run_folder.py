import json

import pytest

from unirl_env.errors import CheckpointError, ConfigError
from unirl_env.run.record.folder import RunFolder, free_name, locate
from unirl_env.run.record.provenance import fingerprint, model_fingerprint


def test_a_folder_that_holds_something_is_not_taken(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    (folder.path / "metrics.jsonl").write_text("precious")
    with pytest.raises(ConfigError, match="resume=auto"):
        folder.create()
    assert (folder.path / "metrics.jsonl").read_text() == "precious"


def test_names_are_numbered(tmp_path):
    assert free_name(tmp_path, "run") == "run"
    for name in ("run", "run-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("")
    assert free_name(tmp_path, "run") == "run-3"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".lock").write_text("")
    assert free_name(tmp_path, "other") == "other"


def test_a_run_is_found_by_its_folder_or_a_checkpoint(tmp_path):
    checkpoint = tmp_path / "run/checkpoints/000010"
    checkpoint.mkdir(parents=True)
    (tmp_path / "run/config.yaml").write_text("{}")
    assert locate(str(tmp_path / "run")) == (RunFolder(tmp_path / "run"), None)
    assert locate(str(checkpoint)) == (RunFolder(tmp_path / "run"), checkpoint)
    for wrong in (tmp_path, tmp_path / "run/checkpoints", tmp_path / "run/checkpoints/000020"):
        with pytest.raises(CheckpointError, match="`resume` must be"):
            locate(str(wrong))


def test_a_fingerprint_follows_names_and_contents(tmp_path):
    def of(files):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
        return fingerprint(folder)

    first = of({"a/weights": "1", "config": "x"})
    assert of({"config": "x", "a/weights": "1"}) == first
    assert of({"a/weights": "2", "config": "x"}) != first
    assert of({"b/weights": "1", "config": "x"}) != first


def test_the_ends_of_large_files_count(tmp_path, monkeypatch):
    from unirl_env.run.record import provenance

    monkeypatch.setattr(provenance, "WHOLE", 8)
    (tmp_path / "big").write_bytes(b"0" * 100)
    first = fingerprint(tmp_path)
    (tmp_path / "big").write_bytes(b"0" * 99 + b"1")
    assert fingerprint(tmp_path) != first


def test_a_model_is_known_by_its_contents_or_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "config.json").write_text(json.dumps({"a": 1}))
    assert model_fingerprint(tmp_path) == fingerprint(tmp_path)
    assert model_fingerprint("nobody/nothing", "abc") == "nobody/nothing@abc"
