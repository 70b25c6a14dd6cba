"""Models of the hub are recorded with their commits, and a branch that has moved is noticed."""

import json

import pytest
from door_fakes import small_config

from unirl_env.errors import ConfigError
from unirl_env.models.tiny import tiny_path
from unirl_env.run.record import provenance
from unirl_env.run.record.provenance import model_fingerprint, record
from unirl_env.run.world_setup import model_sources

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """`hub(commit, file)`: the local copy of `org/model` is what its branch `main` was at a commit."""
    home = tmp_path / "hub"

    def publish(commit, file="config.json", branch="main"):
        folder = home / "models--org--model"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / branch).write_text(commit)
        (folder / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
        (folder / "snapshots" / commit / file).write_text("{}")

    import huggingface_hub

    inner = {name: getattr(huggingface_hub, name) for name in ("hf_hub_download", "try_to_load_from_cache")}
    for name, call in inner.items():
        offline = {"local_files_only": True} if name == "hf_hub_download" else {}
        monkeypatch.setattr(
            huggingface_hub,
            name,
            lambda *args, call=call, offline=offline, **options: call(
                *args, cache_dir=str(home), **offline, **options
            ),
        )
    return publish


@pytest.mark.parametrize("file", ["model_index.json", "config.json", "tokenizer_config.json"])
def test_a_published_model_of_any_family_has_a_commit(hub, file):
    hub(OLD, file)
    assert model_fingerprint("org/model") == f"org/model@{OLD}"
    assert model_fingerprint("org/model", OLD) == f"org/model@{OLD}"
    hub(NEW, file, branch="v2")
    assert model_fingerprint("org/model", "v2") == f"org/model@{NEW}"


def test_what_cannot_be_found_out_is_called_so(hub):
    assert model_fingerprint("org/model") == "org/model@unknown"
    assert model_fingerprint("org/model", "v3") == "org/model@v3"


@pytest.fixture
def note(tmp_path):
    return tmp_path / "provenance.json"


def test_a_branch_that_has_moved_is_refused_with_the_old_commit(hub, note):
    hub(OLD)
    record(note, {"model": model_fingerprint("org/model")}, {})
    hub(NEW)
    with pytest.raises(ConfigError, match=rf"another model than .*; try `model.revision={OLD}`"):
        record(note, {"model": model_fingerprint("org/model")}, {})
    known = record(note, {"model": model_fingerprint("org/model", OLD)}, {})
    assert len(known["sessions"]) == 2


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        (f"org/model@{OLD}", f"org/model@{OLD}", True),
        (f"org/model@{OLD}", f"org/other@{OLD}", False),
        ("org/model@unknown", f"org/model@{OLD}", True),
        (f"org/model@{OLD}", "org/model@unknown", True),
        ("org/model@v1", f"org/model@{OLD}", True),
        ("org/model@v1", "org/model@v2", False),
        ("1" * 64, "2" * 64, False),
        (1, 2, False),
    ],
)
def test_what_counts_as_the_same_source(note, before, now, same):
    record(note, {"model": before}, {})
    if same:
        record(note, {"model": now}, {})
    else:
        with pytest.raises(ConfigError, match="got another model"):
            record(note, {"model": now}, {})


def test_a_commit_that_is_found_out_later_is_kept(note):
    record(note, {"model": "org/model@unknown"}, {})
    record(note, {"model": f"org/model@{OLD}", "model.generator": "x"}, {})
    assert json.loads(note.read_text())["sources"] == {"model": f"org/model@{OLD}", "model.generator": "x"}


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"model__env": "unirl/TinyQwen3-Math-v0", "mode": "ar", "reward__train": "exact"}, ["model"]),
        ({"model__env": "unirl/TinyPromptEnhancer-T2I-v0", "mode": "pe"}, ["model", "model.generator"]),
        (
            {"model__env": "unirl/TinyEnhancerAndSD3-T2I-v0", "mode": "unified_model"},
            ["model.painter", "model.writer"],
        ),
        ({"model__env": "unirl/GaussianMixture-v0"}, []),
    ],
    ids=["language model", "with a generator", "of two models", "in closed form"],
)
def test_every_model_of_a_run_has_a_fingerprint(tmp_path, settings, names):
    found = model_sources(small_config(tmp_path, **settings))
    assert sorted(found) == names
    assert all(len(provenance.model_fingerprint(*each)) == 64 for each in found.values())


def test_a_changed_file_of_a_local_language_model_is_noticed(tmp_path, note):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_path("qwen3"), folder)
    cfg = small_config(
        tmp_path,
        model__env="unirl/TinyQwen3-Math-v0",
        mode="ar",
        reward__train="exact",
        model__pretrained=str(folder),
    )

    def sources():
        return {name: model_fingerprint(*each) for name, each in model_sources(cfg).items()}

    record(note, sources(), {})
    (folder / "generation_config.json").write_text('{"eos_token_id": 7}')
    with pytest.raises(ConfigError, match=r"got another model .*try restoring it"):
        record(note, sources(), {})
