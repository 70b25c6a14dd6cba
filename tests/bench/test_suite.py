"""Suites as files: those that ship, a person's own, and what is said of mistakes in one."""

import pytest

from unirl_env.bench.bench_settings import BenchSettings, read_settings
from unirl_env.bench.cells import cells
from unirl_env.bench.contestants import contestants
from unirl_env.bench.suite import SUITES, load, suites
from unirl_env.errors import ConfigError
from unirl_env.run.agent_setup import check_agent

SMALL = """
title: Small
settings: [rollout.group_size=8]
tasks:
  mix/plain: {recipe: diffusion/gaussian_mixture, score: train/reward, reference: 1.5}
"""


@pytest.fixture
def own(tmp_path):
    def write(text):
        path = tmp_path / "own.yaml"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize("name", suites())
def test_every_task_that_ships_composes_for_a_shipped_agent(name):
    suite = load(name)
    assert suite.tasks and suite.title
    for cell in cells(SUITES, suite, contestants(["grpo"]), [0]):
        cfg = cell.compose()
        assert (cfg.seed, cfg.name, cfg.logging.tensorboard) == (0, "seed_0", False)
        cfg.check()
        if name != "full":  # whose prompts are a person's own files; see test_published.py
            check_agent(cfg)


def test_a_suite_of_ones_own_is_a_file_or_lies_in_a_package(own, monkeypatch, tmp_path):
    path = own(SMALL)
    suite = load(path)
    assert suite.name == "own" and suite.tasks["mix/plain"].tuned_by == "train/reward"
    package = tmp_path / "mysuites"
    (package / "sets").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "sets" / "rings.yaml").write_text(SMALL)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load("mysuites:sets/rings.yaml").name == "rings"


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("score: train/reward", "score: train/rewards", "`score` of mix/plain"),
        ("reference: 1.5", "reference: high", "`reference` of the task mix/plain"),
        (", reference: 1.5", "", "`reference` of mix/plain"),
        ("score: train/reward", "scores: train/reward", "did you mean `score`"),
        ("recipe: diffusion/gaussian_mixture, ", "", "a mapping with a `recipe`"),
        ("mix/plain", "../plain", "must be named as a folder"),
        ("settings: [rollout", "setings: [rollout", "got `setings`"),
        ("[rollout.group_size=8]", "[rollout.group_size]", "a list of `setting=value`"),
        ("score: train/reward", "score: exact", "`measure` of mix/plain"),
    ],
)
def test_a_mistake_in_a_suite_is_named(own, before, after, said):
    assert before in SMALL
    with pytest.raises(ConfigError, match=said.replace("[", r"\[")):
        load(own(SMALL.replace(before, after)))


def test_a_suite_may_extend_another_one_and_has_the_last_word(own, tmp_path):
    own(SMALL)
    path = tmp_path / "more.yaml"
    path.write_text("""
extends: own.yaml
settings: [rollout.group_size=4]
tasks:
  mix/plain: {settings: [iterations=3], threshold: 0.4}
  mix/more:
    {recipe: diffusion/gaussian_mixture, score: train/reward, reference: 1.0, settings: [iterations=5]}
""")
    base, made = load(str(tmp_path / "own.yaml")), load(str(path))
    assert (made.name, made.title, list(made.tasks)) == ("more", "more", ["mix/plain", "mix/more"])
    plain, more = made.tasks.values()
    assert (plain.reference, plain.threshold) == (1.5, 0.4) and base.tasks["mix/plain"].threshold == 0.8
    assert more.settings == ("rollout.group_size=4", "iterations=5")
    (cell, other) = cells(tmp_path, made, contestants(["grpo"]), [0])
    assert (cell.compose().rollout.group_size, cell.compose().iterations) == (4, 3)
    assert other.compose().iterations == 5 and base.settings == ("rollout.group_size=8",)
    path.write_text("extends: tiny\nsettings: [iterations=1]\n")
    assert list(load(str(path)).tasks) == list(load("tiny").tasks)
    assert {
        cell.compose().iterations for cell in cells(tmp_path, load(str(path)), contestants(["grpo"]), [0])
    } == {1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("extends: fool", "must be one of .*or the name of a YAML file beside"),
        ("extends: ../own.yaml", "`extends` of .* must be one of"),
        ("extends: [full]", "`extends` of .* must be one of"),
        ("extends: own.yaml", "that does not extend it"),
        ("extends: full\ntasks: {sd3/pickscores: {settings: [iterations=1]}}", "a mapping with a `recipe`"),
        ("extends: full\ntasks: [sd3/pickscore]", "a mapping of tasks by name"),
    ],
)
def test_a_mistake_in_what_is_extended_is_named(own, text, said):
    with pytest.raises(ConfigError, match=said):
        load(own(text))


def test_unknown_suites_and_tasks_are_refused_with_the_nearest(own):
    with pytest.raises(ConfigError, match="did you mean tiny"):
        load("tyny")
    with pytest.raises(ConfigError, match="did you mean mix/plain"):
        load(own(SMALL)).only(["mix/plane"])
    with pytest.raises(ConfigError, match="a package that can be imported"):
        load("nopackage_here:x.yaml")


def test_settings_are_read_from_words():
    read = read_settings(["suite=tiny", "agents=[grpo,mylab.alg:ReinforceConfig]", "seeds=[1,4]", "tune=3"])
    assert read.agents == ["grpo", "mylab.alg:ReinforceConfig"]
    assert read.chosen_seeds == [1, 4] and read.tune == 3
    assert read_settings(["seeds=3"]).chosen_seeds == [0, 1, 2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["suit=quick"], "did you mean `suite"),
        (["seeds=0"], "`seeds` must be different numbers"),
        (["seeds=[1,1]"], "`seeds` must be different numbers"),
        (["seeds=two"], "`seeds` must be a whole number"),
        (["agents=[]"], "`agents` must name an agent"),
        (["name=a/b"], "`name` must name a folder"),
        (["workers=0"], "`workers` must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(words, said):
    with pytest.raises(ConfigError, match=said):
        read_settings(words)


def test_the_folder_is_named_after_the_suite():
    assert BenchSettings(folder="x").place("quick").as_posix() == "x/quick"
    assert BenchSettings(folder="x", name="mine").place("quick").as_posix() == "x/mine"
