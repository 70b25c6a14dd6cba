"""A hundred typical mistakes: each is explained before a model is loaded or Ray is started."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from unirl_env import errors

ALL = yaml.safe_load((Path(__file__).parent / "mistakes.yaml").read_text(encoding="utf-8"))
DOORS = {"train": "unirl_env.train", "evaluate": "unirl_env.evaluate", "serve": "unirl_env.service.__main__"}
COMMANDS = [(door, case[door], case["says"]) for case in ALL for door in DOORS if door in case]
SNIPPETS = [(case["python"], case["says"]) for case in ALL if "python" in case]


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch, tmp_path):
    """Whoever loads weights or starts Ray fails."""
    import diffusers
    import ray
    import transformers

    def refused(*_, **__):
        raise AssertionError("a model was loaded, or Ray was started")

    monkeypatch.setattr(ray, "init", refused)
    for kind in (transformers.PreTrainedModel, diffusers.ModelMixin, diffusers.DiffusionPipeline):
        monkeypatch.setattr(kind, "from_pretrained", refused)
    monkeypatch.delenv("UNIRL_SERVICE_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)


def missing(message, says):
    plain = " ".join(message.split())
    return [words for words in says if words not in plain]


def test_there_are_a_hundred():
    assert len(ALL) >= 100
    assert all(set(case) & {*DOORS, "python"} and case["says"] for case in ALL)


@pytest.mark.parametrize(
    "door, words, says", COMMANDS, ids=[f"{door} {words}" for door, words, _ in COMMANDS]
)
def test_on_the_command_line(door, words, says, capsys, tmp_path):
    import importlib

    module = importlib.import_module(DOORS[door])
    assert module.main(shlex.split(words)) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert re.match(r"[A-Z]\w+: ", err) and getattr(errors, err.partition(":")[0])
    assert missing(err, says) == [], err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("snippet, says", SNIPPETS, ids=[snippet for snippet, _ in SNIPPETS])
def test_in_python(snippet, says, tmp_path):
    import gymnasium as gym
    import numpy as np

    import unirl_env
    from unirl_env import agents, rewards, worlds
    from unirl_env import settings as config
    from unirl_env.prompts.sources import PromptSource
    from unirl_env.train import settings

    known = dict(gym=gym, np=np, unirl_env=unirl_env, agents=agents, worlds=worlds, config=config)
    known |= dict(rewards=rewards, settings=settings, prompts=PromptSource, folder=str(tmp_path))
    with pytest.raises(errors.UnirlError) as caught:
        eval(snippet, known)
    assert missing(str(caught.value), says) == [], str(caught.value)


@pytest.mark.parametrize(
    "module, words, said",
    [
        ("unirl_env.train", ["agent.lrr=1"], b"agent.lr"),
        ("unirl_env.train", ["iterations=3", "--config-name", "nö", "seed=1"], b"--config-name"),
        ("unirl_env.evaluate", ["--run", "n\udcffwhere"], b"--run"),
    ],
)
def test_as_a_process_of_an_old_locale(module, words, said, tmp_path):
    root = str(Path(errors.__file__).parents[2])
    plain = {"LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-m", module, *map(os.fsencode, words)],
        cwd=tmp_path,
        env={**os.environ, **plain},
        capture_output=True,
        timeout=240,
    )
    assert done.returncode == 2 and b"Traceback" not in done.stderr and said in done.stderr, done.stderr
