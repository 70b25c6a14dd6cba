"""A run's folder says the form of its settings: what would be read wrongly is refused, the older is read."""

import pytest

from unirl_env import train
from unirl_env.errors import ConfigError
from unirl_env.run.compose.yaml import VERSION, read_yaml, to_yaml


@pytest.fixture
def written(tmp_path):
    cfg = train.settings("diffusion/gaussian_mixture", ["seed=3"])
    path = tmp_path / "runs/mixture/config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(to_yaml(cfg), encoding="utf-8")
    return path, cfg


def test_settings_are_written_with_their_version_and_read(written):
    path, cfg = written
    assert path.read_text().startswith(f"version: {VERSION}\n")
    assert read_yaml(path) == cfg


def test_settings_of_before_there_were_versions_mean_the_same(written):
    path, cfg = written
    lines = path.read_text().splitlines(keepends=True)
    new = ("version:", "  keep_samples:", "  cluster_wait:")
    path.write_text("".join(line for line in lines if not line.startswith(new)), encoding="utf-8")
    assert read_yaml(path) == cfg


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (VERSION + 1, f"at most {VERSION}.*got {VERSION + 1}: a later one.*provenance.json"),
        (900, "got 900"),
        (0, "at least 1, got 0"),
        (-1, "got -1"),
        (1.5, "got 1.5"),
        ("true", "got True"),
        ("'1'", "got '1'"),
        ("null", "got None"),
        ("[1]", r"got \[1\]"),
    ],
)
def test_another_form_is_refused_at_every_door(written, version, said, monkeypatch, capsys):
    path, _ = written
    path.write_text(path.read_text().replace(f"version: {VERSION}\n", f"version: {version}\nnew_group: 3\n"))
    with pytest.raises(ConfigError, match=f"`version` of .*{said}"):
        read_yaml(path)
    monkeypatch.chdir(path.parents[2])
    from unirl_env import evaluate

    for door, words in (
        (train, ["resume=runs/mixture"]),
        (train, ["--config-name", "diffusion/gaussian_mixture", "resume=auto", "name=mixture", "seed=3"]),
        (train, ["--config-name", str(path)]),
        (evaluate, ["--run", "runs/mixture"]),
    ):
        assert door.main(words) == 2
        err = " ".join(capsys.readouterr().err.split())
        assert err.startswith("ConfigError: `version` of") and "Traceback" not in err
    assert [each.name for each in path.parent.iterdir()] in (["config.yaml"], ["config.yaml", ".lock"])


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "[1, 2]"])
def test_a_file_that_holds_no_settings_is_refused(written, text):
    path, _ = written
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="must hold"):
        read_yaml(path)
