"""Every example runs, with small settings, and what it claims to show happens."""

import importlib
from pathlib import Path

import cluster as one_cluster
import pytest

FOLDER = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.fixture(autouse=True)
def folder_of_the_script(monkeypatch):
    """Python puts a script's own folder on the path."""
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture(scope="session")
def cluster():
    one_cluster.start()


def example(number):
    return importlib.import_module(next(name for name in NAMES if name.startswith(number)))


def test_there_are_examples():
    assert [name[:2] for name in NAMES] == [f"{number:02d}" for number in range(1, 12)]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short_and_says_how_to_run_it(name):
    text = (FOLDER / f"{name}.py").read_text()
    assert len(text.splitlines()) < 100
    assert f"python examples/{name}.py" in text.split('"""')[1]


@pytest.mark.parametrize("env_id", ["unirl/GaussianMixture-v0", "unirl/TinySD3-T2I-v0"])
def test_step_by_hand(env_id, capsys, tmp_path):
    reward = example("01").main(env_id, num_steps=4, folder=tmp_path / "new")
    assert bool(reward.isfinite().all())
    printed = capsys.readouterr().out
    assert "step 3: sigma" in printed
    assert "seeds of their own: 4" in printed
    assert (tmp_path / "new" / "samples.png").exists() == ("SD3" in env_id)


def test_custom_reward():
    found = example("02").main(num_envs=2, num_steps=2)
    red, blue, green, mixed = found.values()
    assert set(blue.parts) == {"pure", "bright"}
    # Each by its own formula from what the others report of the same pictures.
    expected = -1.5 * (blue.parts["pure"] + green.parts["pure"])
    assert red.value.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    expected = 2 * green.parts["pure"]
    assert green.value.tolist() == pytest.approx(expected.tolist(), nan_ok=True)
    expected = mixed.parts["shapes"] + 0.5 * red.value
    assert mixed.value.tolist() == pytest.approx(expected.tolist(), nan_ok=True)


def test_grpo_from_scratch():
    curve = example("03").main(iterations=15, group_size=128)
    assert curve[-1] > curve[0] + 0.5


@pytest.mark.ray
def test_flow_dppo_on_rllib(cluster):
    curve = example("04").main(
        "unirl/GaussianMixture-v0",
        iterations=15,
        num_prompts=1,
        group_size=128,
        lr=0.03,
        kl_threshold_nats=0.04,
        steps={"kind": "all"},
        policy={"lora_rank": None, "eta": 1.4},
    )
    assert curve[-1] > curve[0] + 0.5


@pytest.mark.ray
def test_rllib_ppo(cluster):
    curve = example("05").main(iterations=6, num_envs=32)
    assert max(curve[-2:]) > curve[0] + 0.3


def test_sb3_ppo():
    pytest.importorskip("stable_baselines3")
    before, after = example("06").main(timesteps=4000, episodes=20)
    assert after > before + 0.3


def test_calculator_tool(capsys):
    curve = example("07").main(iterations=12)
    assert sum(curve[-3:]) / 3 > sum(curve[:3]) / 3 + 0.2
    assert "[user <tool_response>" in capsys.readouterr().out


def test_prompt_enhancement(capsys, quiet_models):
    curve = example("08").main(iterations=12)
    assert sum(curve[-3:]) / 3 > sum(curve[:3]) / 3 + 0.2
    assert " -> a " in capsys.readouterr().out


def test_write_and_draw(capsys, tmp_path):
    reward = example("09").main(num_envs=2, num_steps=4, folder=tmp_path / "new")
    assert len(reward) == 2 and bool(reward.isfinite().all())
    printed = capsys.readouterr().out
    assert "steps of writing" in printed and "step 3 of drawing" in printed
    assert (tmp_path / "new" / "plans.png").exists()


def test_reward_service():
    local, remote, code = example("10").main(num_envs=4, num_steps=2)
    assert code == 0 and local.valid.all()
    assert local.value.tolist() == remote.value.tolist()
    assert set(local.parts) == set(remote.parts) and {"shapes", "sharpness"} <= set(local.parts)


@pytest.mark.ray
def test_a_process_of_ones_own_finds_the_shortest_ways(cluster):
    module = example("11")
    assert module.main() == module.SHORTEST
