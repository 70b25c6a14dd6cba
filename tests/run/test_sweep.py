import re

import pytest
from door_fakes import fake_parts, small_config

from unirl_env import train
from unirl_env.errors import ConfigError
from unirl_env.run.compose.overrides import alternatives


@pytest.mark.parametrize(
    ("item", "values"),
    [
        ("seed=0,1,2", ["0", "1", "2"]),
        ("seed=range(1,4)", ["1", "2", "3"]),
        ("agent.lr=choice(0.1,0.2)", ["0.1", "0.2"]),
        ("agent.betas=[0.8,0.9],[0.9,0.95]", ["[0.8,0.9]", "[0.9,0.95]"]),
        ("reward.train={name: a, x: 1}", ["{name: a, x: 1}"]),
        ("name='a,b',c", ["'a,b'", "c"]),
        ("name=it's,b", ["it's", "b"]),
    ],
)
def test_commas_part_the_values_of_a_sweep(item, values):
    key = item.partition("=")[0]
    assert alternatives(item) == [f"{key}={value}" for value in values]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The door, with runs that take no time; their settings as they began."""
    began = []

    def settings(recipe, overrides, directory):
        cfg = small_config(tmp_path, iterations=1)
        for item in overrides:
            key, value = item.split("=")
            if key == "nonsense":
                raise ConfigError("`nonsense` must be one of the settings of a run")
            setattr(
                cfg if key in ("seed", "name", "resume") else cfg.rollout, key.split(".")[-1], cast(value)
            )
        return cfg

    def cast(value):
        return int(value) if value.isdigit() else value

    def build(cfg, **_):
        began.append(cfg)
        if cfg.seed == 13:
            raise ZeroDivisionError("nobody foresaw it")
        return fake_parts()(cfg)

    monkeypatch.setattr("unirl_env.run.compose.chosen.settings", settings)
    monkeypatch.setattr("unirl_env.run.agent_setup.build_parts", build)
    return began


def test_a_sweep_is_a_run_for_each_combination(runs, tmp_path, capsys):
    assert train.main(["-m", "seed=1,2", "rollout.num_prompts=2,4"]) == 0
    assert [(cfg.seed, cfg.rollout.num_prompts) for cfg in runs] == [(1, 2), (1, 4), (2, 2), (2, 4)]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"fake-seed={seed}-num_prompts={count}" for seed in (1, 2) for count in (2, 4)}
    seen = capsys.readouterr().out
    table = seen[seen.index("The sweep") :]
    assert len(re.findall(r"seed=[12]\b", table)) >= 4 and table.count("done") == 4
    assert max(map(len, table[: table.index("Reports")].splitlines())) <= 80
    assert train.main(["seed=1,2", "--multirun", "resume=auto"]) == 0


def test_a_run_that_fails_stops_no_other(runs, tmp_path, capsys):
    assert train.main(["-m", "seed=0,13,1", "rollout.group_size=4"]) == 1
    assert [cfg.seed for cfg in runs] == [0, 13, 1]
    out, err = capsys.readouterr()
    assert "ZeroDivisionError: nobody foresaw it" in out and "Traceback" in err
    assert train.main(["-m", "rollout.group_size=1,4"]) == 2
    assert "at least 2" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} >= {"fake-seed=0", "fake-seed=1", "fake-group_size=4"}


def test_what_no_run_can_have_is_said_once(runs, capsys):
    assert train.main(["-m", "seed=0,1", "nonsense=1"]) == 2
    assert capsys.readouterr().err.count("nonsense") == 1
    assert runs == []


def test_settings_stand_anywhere_and_hydras_words_are_known(capsys):
    words = ["agent=grpo", "--config-name", "ar/tiny_qwen3", "iterations=3", "--cfg", "job", "seed=4"]
    assert train.main(words) == 0
    seen = capsys.readouterr().out
    assert "iterations: 3" in seen and "seed: 4" in seen and "name: grpo" in seen
    assert train.main([*words[:4], "--show", "seed=4"]) == 0
    assert capsys.readouterr().out == seen
    with pytest.raises(SystemExit) as ended:
        train.main(["--version"])
    assert ended.value.code == 0 and "unirl-env" in capsys.readouterr().out
