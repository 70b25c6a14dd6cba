"""Folders of strangers: nothing that their settings name is imported unless somebody says so."""

import io
import multiprocessing
import os
import stat
import sys

import pytest
from door_fakes import fake_parts, small_config
from rich.console import Console

from unirl_env.errors import ConfigError
from unirl_env.run import trust
from unirl_env.run.comparison import Options, compare
from unirl_env.run.compose.yaml import read_yaml, to_yaml
from unirl_env.run.launch import launch
from unirl_env.run.record.folder import RunFolder
from unirl_env.run.report import write_report
from unirl_env.run.trust import foreign, key_path, require_trust, signed
from unirl_env.train import main, settings

EVIL = "unirl_never_imported.rewards:score"


@pytest.fixture
def account(tmp_path, monkeypatch):
    """`account(name)` changes who runs this."""

    def change(name):
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "accounts" / name))

    change("mine")
    return change


@pytest.fixture
def run(tmp_path, account):
    """The folder of a finished run of this account, whose reward is code of its own."""
    module = tmp_path / "code" / "unirl_never_imported" / "rewards.py"
    module.parent.mkdir(parents=True)
    module.write_text("from unirl_env.types import Scores\n\ndef score(samples, prompts):\n    pass\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path / "code"))
        launch(small_config(tmp_path, reward__train=EVIL), Console(file=io.StringIO()), [], fake_parts())
        forget()
        yield RunFolder(tmp_path / "fake")
        forget()


def forget():
    for name in [name for name in sys.modules if name.startswith("unirl_never_imported")]:
        del sys.modules[name]


def evaluate(run, **options):
    return compare(str(run.path), Options(), Console(file=io.StringIO()), fake_parts(), **options)


def test_ones_own_folder_goes_on_without_a_question(run):
    assert evaluate(run)
    assert settings(overrides=[f"resume={run.path}"]).reward.train == EVIL


def test_a_strangers_folder_imports_nothing_unless_it_is_trusted(run, account, capsys):
    account("somebody else's")
    for ask in (lambda: evaluate(run), lambda: settings(overrides=[f"resume={run.path}", "iterations=9"])):
        with pytest.raises(ConfigError, match=r"`reward.train` is 'unirl_never_.*imported.*`--trust`"):
            ask()
    assert main([f"resume={run.path}", "iterations=9"]) == 2 and "--trust" in capsys.readouterr().err
    write_report(run)
    assert main(["--show", f"resume={run.path}"]) == 0
    assert not [name for name in sys.modules if name.startswith("unirl_never_imported")]
    assert evaluate(run, trust=True)
    assert settings(overrides=[f"resume={run.path}"], trust=True).reward.train == EVIL


def test_a_shared_key_is_one_account(run, account):
    key = key_path().read_bytes()
    account("on another node")
    key_path().parent.mkdir(parents=True)
    key_path().write_bytes(key)
    key_path().chmod(0o600)
    assert evaluate(run)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("seed: 0", "seed: 1"),
        lambda text: text.rpartition("# signed")[0],
        lambda text: text + "# more\n",
        lambda text: text.replace("# signed: ", "# signed: 0"),
    ],
    ids=["edited", "not signed", "lines after it", "another signature"],
)
def test_what_was_changed_afterwards_is_asked_about(run, change):
    run.config.write_text(change(run.config.read_text()))
    with pytest.raises(ConfigError, match=r"have no signature|changed afterwards"):
        evaluate(run)


def test_a_continued_run_is_signed_anew(run, account, tmp_path):
    account("the heir's")
    cfg = settings(overrides=[f"resume={run.path}", "iterations=8"], trust=True)
    launch(cfg, Console(file=io.StringIO()), [], fake_parts())
    require_trust(run.config, read_yaml(run.config))
    assert read_yaml(run.config).iterations == 8


WRITER = {"model_options": {"writer": {"language_model": "os.path:join"}}}
GATE = {"name": "gate", "gate": "exact", "scorer": {"name": "os:system"}}
HTTP = {"name": "http", "url": "http://h"}


@pytest.mark.parametrize(
    ("setting", "value", "inside"),
    [
        ("reward.train", "subprocess:Popen", ""),
        ("reward.train", "os.system", ""),
        ("reward.train", "unirl_env.train:sys.exit", ""),
        ("reward.heldout", {"name": "product", "parts": {"os:system": 1.0}}, ".parts.os:system"),
        ("reward.train", GATE, ".scorer.name"),
        ("reward.train", {"name": "geneval", "detector": "os:system"}, ".detector"),
        ("reward.train", {**HTTP, "token_env": "AWS_SECRET"}, ".token_env"),
        ("reward.train", {**HTTP, "headers_env": {"X": "AWS_SECRET"}}, ".headers_env"),
        ("reward.train", {**HTTP, "url": "http://h?q=env:AWS_SECRET"}, ".url"),
        ("reward.train", {"name": "remote", "urls": ["http://h"]}, ".name"),
        ("model.env", "os:unirl/TinySD3-T2I-v0", ""),
        ("model.env", "unirl_env:other/Thing-v0", ""),
        ("model.options", {"tool": "os:system"}, ".tool"),
        ("model.options", WRITER, ".model_options.writer.language_model"),
        ("model.options", {"trust_remote_code": True}, ".trust_remote_code"),
        ("agent.name", "os:system", ""),
        ("rollout.engine", "os:system", ""),
        ("rollout.engine_options", {"options": {"worker-extension-cls": "os.path"}}, ".options"),
        ("rollout.engine_options", {"key": "env:AWS_SECRET", "url": "http://h"}, ".key"),
    ],
)
def test_what_names_code_or_secrets(tmp_path, setting, value, inside):
    cfg = small_config(tmp_path, **{setting.replace(".", "__"): value})
    assert [place for place, *_ in foreign(cfg)] == [setting + inside]


def test_what_ships_with_the_library_is_never_asked_about(tmp_path):
    for recipe in ("diffusion/sd3", "pe/prompt_enhancer", "unified_model/tiny_unified"):
        assert not [*foreign(settings(recipe))], recipe
    cfg = small_config(tmp_path, model__env="unirl_env:unirl/TinySD3-T2I-v0")
    cfg.reward.train = {
        "name": "judge",
        "url": "http://127.0.0.1:1/v1",
        "model": "gpt.4",
        "rubric": "rubric.txt",
    }
    cfg.prompts.train = ["os:system", "os.system"]
    assert not [*foreign(cfg)]


class TestKey:
    def test_it_is_for_its_owner_alone(self, account, tmp_path):
        text = signed("a: 1\n", small_config(tmp_path))
        assert text.startswith("a: 1\n# signed: ") and text == signed("a: 1\n", small_config(tmp_path))
        assert stat.S_IMODE(key_path().stat().st_mode) == 0o600
        assert [path.name for path in key_path().parent.iterdir()] == ["key"]
        key_path().chmod(0o644)
        assert signed("a: 1\n", small_config(tmp_path)) == "a: 1\n", "others could have signed"

    def test_the_first_of_many_processes_makes_it(self, account, tmp_path):
        context = multiprocessing.get_context("fork")
        with context.Pool(8) as pool:
            texts = pool.starmap(signed, [("a: 1\n", small_config(tmp_path))] * 32, chunksize=1)
        assert len(set(texts)) == 1 and "# signed" in texts[0]

    def test_without_a_home_runs_go_on_unsigned_and_say_so(self, account, tmp_path, monkeypatch, caplog):
        (tmp_path / "accounts").write_text("no folder")
        cfg = small_config(tmp_path)
        assert signed("a: 1\n", cfg) == "a: 1\n" and not caplog.text
        cfg.reward.train = EVIL
        assert signed("a: 1\n", cfg) == "a: 1\n" and "`--trust`" in caplog.text

    def test_only_an_absolute_place_counts(self, monkeypatch):
        monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
        monkeypatch.setenv("HOME", "/home/me")
        assert str(key_path()) == "/home/me/.config/unirl_env/key"
        assert os.path.isabs(trust.key_path())

    def test_the_text_is_that_of_the_settings(self, account, tmp_path):
        cfg = small_config(tmp_path)
        path = tmp_path / "config.yaml"
        path.write_text(signed(to_yaml(cfg), cfg))
        assert read_yaml(path) == cfg
