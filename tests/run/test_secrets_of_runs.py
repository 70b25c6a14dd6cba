"""A run with keys in its settings leaves none of them behind, and reads them anew to go on."""

import io
import json
import logging
from pathlib import Path

import pytest
from door_fakes import fake_parts, small_config
from rich.console import Console

from unirl_env.errors import ConfigError, masks
from unirl_env.run.comparison import Options, compare
from unirl_env.run.compose.yaml import read_yaml
from unirl_env.run.entry import guarded
from unirl_env.run.launch import launch
from unirl_env.train import main, settings

SECRETS = ("sk-0123456789abcdef", "q1w2e3r4t5", "me:pass99", "hea-der-1")
REWARD = {
    "name": "http",
    "url": "https://127.0.0.1:9/score?api_key=q1w2e3r4t5",
    "constants": {"api_key": "sk-0123456789abcdef", "mode": "strict"},
    "fields": ["prompt"],
}
ENGINE = {"key": "hea-der-1", "proxy": "http://me:pass99@proxy:3128"}
VARIABLES = {
    "UNIRL_REWARD_TRAIN_URL_API_KEY": "q1w2e3r4t5",
    "UNIRL_REWARD_TRAIN_CONSTANTS_API_KEY": "sk-0123456789abcdef",
    "UNIRL_ROLLOUT_ENGINE_OPTIONS_KEY": "hea-der-1",
    "UNIRL_ROLLOUT_ENGINE_OPTIONS_PROXY_USER": "me:pass99",
}
COMMAND = [
    "train",
    "reward.train.constants.api_key=sk-0123456789abcdef",
    "rollout.engine_options.key=hea-der-1",
]


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(masks, "_known", set())
    # The agent of these runs is a fake, and so is its engine.
    monkeypatch.setattr("unirl_env.run.preflight._check_engine", lambda cfg, mode: None)
    monkeypatch.setattr("unirl_env.agents.checks.check_engine_options", lambda engine, options: None)


def start(cfg, command=COMMAND):
    stream = io.StringIO()
    launch(cfg, Console(file=stream, width=200), command, fake_parts())
    return stream.getvalue()


def with_secrets(folder, **changes):
    return small_config(folder, reward__train=dict(REWARD), rollout__engine_options=dict(ENGINE), **changes)


@pytest.fixture
def run(tmp_path):
    seen = start(with_secrets(tmp_path, logging__tensorboard=True))
    assert not [secret for secret in SECRETS if secret in seen]
    return tmp_path / "fake"


def test_no_file_of_a_run_holds_a_secret(run):
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {"config.yaml", "provenance.json", "report.html"} <= {path.name for path in files}
    found = [(path.name, s) for path in files for s in SECRETS if s.encode() in path.read_bytes()]
    assert not found
    command = json.loads((run / "provenance.json").read_text())["sessions"][0]["command"]
    assert command[1:] == ["reward.train.constants.api_key=***", "rollout.engine_options.key=***"]
    written = read_yaml(run / "config.yaml").reward.train
    assert written["url"].endswith("?api_key=env:UNIRL_REWARD_TRAIN_URL_API_KEY")
    assert written["constants"]["mode"] == "strict"


def test_it_goes_on_with_what_the_environment_holds(run, monkeypatch):
    words = [f"resume={run}", "iterations=7"]
    with pytest.raises(
        ConfigError, match=r"UNIRL_R\w+ must hold the secret that `r[\w.]+` names, got nothing"
    ):
        start(settings(overrides=words))
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    start(settings(overrides=words), ["again"])
    assert compare(str(run), Options(), Console(file=io.StringIO()), fake_parts())


def test_the_same_run_may_be_given_another_key(run):
    cfg = with_secrets(run.parent, resume="auto", iterations=7)
    cfg.reward.train["constants"] = {"api_key": "sk-another-key-9876543210", "mode": "strict"}
    start(cfg)
    cfg.reward.train["constants"] = {"api_key": "sk-another-key-9876543210", "mode": "kind"}
    with pytest.raises(ConfigError, match=r"reward\.train") as caught:
        start(cfg)
    assert "9876" not in str(caught.value)


def test_the_door_shows_none(capsys, tmp_path):
    words = ["--show", f"reward.train={{name: http, url: 'http://h', token: {SECRETS[1]}}}"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "env:UNIRL_REWARD_TRAIN_TOKEN" in shown and SECRETS[1] not in shown


@pytest.mark.parametrize(
    "word",
    [
        "reward.train.constants.api_key=q1w2e3r4t5]",
        "reward.train={name: http, url: 'http://h?key=q1w2e3r4t5', token: q1w2e3r4t5",
        "rewards.trainn.password='q1w2e3r4t5'",
    ],
)
def test_mistakes_in_a_command_are_told_without_its_secrets(capsys, word):
    assert main([word]) == 2
    seen = capsys.readouterr()
    assert "q1w2e3" not in seen.out + seen.err and "ConfigError" in seen.err


def test_neither_errors_nor_records_of_other_libraries_show_one(capsys, caplog, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "a1b2c3d4e5f6")
    factory = logging.getLogRecordFactory()

    def action(console):
        logging.getLogger("httpx").warning("HTTP Request: GET https://h?key=%s", "a1b2c3d4e5f6")
        raise OSError("refused a1b2c3d4e5f6")

    try:
        assert guarded(action) == 1
    finally:
        logging.setLogRecordFactory(factory)
    seen = capsys.readouterr().err
    assert "refused ***" in seen and "a1b2c3d4" not in seen + caplog.text and "key=***" in caplog.text


def test_prompts_are_not_searched(tmp_path):
    cfg = with_secrets(tmp_path)
    cfg.prompts.train = [
        {"prompt": f"what is {n}?", "token": "a word", "answer": "Bearer of rings"} for n in range(8)
    ]
    start(cfg)
    assert read_yaml(Path(tmp_path / "fake/config.yaml")).prompts.train == cfg.prompts.train
