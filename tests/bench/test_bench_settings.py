import pytest
from synthetic_bench import bench, write

from unirl_env.bench.page import table, write_bench
from unirl_env.run.compose.yaml import to_yaml
from unirl_env.settings import RunConfig

ONE = {"a": ("A", "")}


def configured(folder, agent, seed, **changes):
    cfg = RunConfig(name=f"{agent}-{seed}", seed=seed)
    for name, value in changes.items():
        part, _, field = name.partition("__")
        setattr(getattr(cfg, part), field, value)
    place = folder / f"runs/a/{agent}/seed_{seed}"
    place.mkdir(parents=True)
    (place / "config.yaml").write_text(to_yaml(cfg))


def settings(folder, known, rows):
    made = {each.name: each for each in table(rows, known, folder)}
    return {row[0].text: [cell.text for cell in row[1:]] for row in made["settings"].rows}


def test_settings_that_differ_are_those_that_the_runs_wrote_down(tmp_path):
    known, rows = bench(ONE, {"grpo": 0.5, "pg": 0.4}, seeds=2)
    write(tmp_path, known, rows)
    assert set(settings(tmp_path, known, rows)) == {"agent.name", "agent.lr"}
    for seed in range(2):
        configured(tmp_path, "grpo", seed, agent__num_epochs=3, agent__name="grpo")
        configured(tmp_path, "pg", seed, agent__num_epochs=1, agent__name="pg")
    found = settings(tmp_path, known, rows)
    assert found["agent.num_epochs"] == ["3", "1"] and found["agent.name"] == ["grpo", "pg"]
    assert "seed" not in found and "name" not in found and "iterations" not in found
    assert "agent.num_epochs" in write_bench(tmp_path).read_text()


@pytest.mark.parametrize("text", ["", "agent: [", "\x00"])
def test_settings_that_cannot_be_read_are_left_out(tmp_path, text):
    known, rows = bench(ONE, {"grpo": 0.5, "pg": 0.4}, seeds=1)
    write(tmp_path, known, rows)
    configured(tmp_path, "grpo", 0)
    configured(tmp_path, "pg", 0)
    (tmp_path / "runs/a/pg/seed_0/config.yaml").write_text(text)
    assert set(settings(tmp_path, known, rows)) == {"agent.name", "agent.lr"}
    assert write_bench(tmp_path).exists()
