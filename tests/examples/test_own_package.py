"""The example of somebody's own package: copied out of the repository, installed, and used from elsewhere."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cluster as one_cluster
import pytest
import torch

import unirl_env.functional as F
from unirl_env import evaluate, train
from unirl_env.agents.by_name import default_config
from unirl_env.models.gaussian_mixture import GaussianMixtureDenoiser
from unirl_env.policies.actor import Actor
from unirl_env.run.compose.yaml import read_yaml
from unirl_env.run.record import checkpoint as checkpoints
from unirl_env.run.record.logbook import read_rows

HOME = Path(__file__).parents[2] / "examples" / "own_package"
SMALL = ["iterations=2", "logging.tensorboard=false", "logging.eval_samples=2", "logging.checkpoint_every=1"]
RING = ["--config-name", "ring"]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The package in a folder of installed ones, and a directory that has nothing to do with it."""
    site, place = tmp_path / "site", tmp_path / "elsewhere"
    shutil.copytree(HOME / "mylab", site / "mylab", ignore=shutil.ignore_patterns("__pycache__"))
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(site))
    # For processes of Ray's that start from now on, as an installed package would be.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    yield site / "mylab" / "recipes"
    for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
        del sys.modules[name]


@pytest.fixture
def cluster():
    one_cluster.start()


def refused(capsys, recipes, *words):
    assert train.main(["--config-dir", str(recipes), *RING, *SMALL, *words]) == 2
    return " ".join(capsys.readouterr().err.split())


def test_it_is_small():
    files = [path for path in HOME.rglob("*") if path.suffix in (".py", ".toml", ".yaml")]
    assert sum(len(path.read_text().splitlines()) for path in files) < 180


def test_nft_from_outside_is_short_and_equals_ours(elsewhere):
    assert len((HOME / "mylab" / "nft.py").read_text().splitlines()) <= 40
    gradients = []
    for name in ("mylab.nft:NegativeAwareConfig", "nft"):
        config = default_config(name).environment("unirl/GaussianMixture-v0", env_config={"num_steps": 4})
        config.training(num_prompts=1, group_size=8, policy={"lora_rank": None}, grad_clip=None)
        config.validate()
        actor = Actor(GaussianMixtureDenoiser())
        generator = torch.Generator().manual_seed(0)
        noise, final = (torch.randn(32, 2, generator=generator) for _ in range(2))
        sigma = torch.rand(32, generator=generator)
        latent, target = F.noised(final, noise, sigma)
        seen = {"latent": latent, "sigma": sigma}
        velocity = actor.velocity(seen)
        rows = SimpleNamespace(
            observation=seen,
            action=target,
            old_velocity=velocity.detach() + 0.1 * noise,
            advantages=3 * torch.randn(32, generator=generator),
            weight=torch.ones(32),
            mask=torch.ones(32, dtype=torch.bool),
            denominator=32.0,
            mean=lambda values: values.mean(),
        )
        new, context = SimpleNamespace(velocity=velocity), SimpleNamespace(config=config)
        loss, _ = config.losses["latents"].compute(rows, new, context)
        gradients.append(torch.autograd.grad(loss, list(actor.network.parameters())))
    for mine, ours in zip(*gradients, strict=True):
        assert ours.abs().max() > 0
        torch.testing.assert_close(mine, ours, rtol=1e-5, atol=1e-7)


def test_importing_it_loads_nothing_large(elsewhere):
    code = "import sys, mylab; assert not {'torch', 'ray', 'mylab.ring'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.ray
def test_it_trains_resumes_and_is_evaluated_from_anywhere(elsewhere, cluster):
    assert train.main(["--config-dir", str(elsewhere), *RING, *SMALL]) == 0
    run = Path("runs/ring").resolve()
    first = read_rows(run / "metrics.jsonl")
    assert [row["iteration"] for row in first] == [1, 2] and all(row["drift"] >= 0 for row in first)
    assert first[0]["trained_rows"] == 64 * 5, "idle rows count for a pull of one's own"
    assert "Reinforce</li>" in (run / "report.html").read_text()

    assert train.main([f"resume={run}", "iterations=3"]) == 0
    assert [row["iteration"] for row in read_rows(run / "metrics.jsonl")] == [1, 2, 3]
    last = max(checkpoints.listing(run / "checkpoints"), key=lambda one: one.iteration)
    assert checkpoints.read(last.path)[1]["agent"] == "mylab.alg:ReinforceConfig"

    assert evaluate.main(["--run", str(run), "--samples", "2"]) == 0


def test_what_is_wrong_with_it_is_told_before_anything_loads(elsewhere, capsys):
    said = refused(capsys, elsewhere, "agent.options.leesh=0.1")
    assert "did you mean `agent.options.leash`" in said
    said = refused(capsys, elsewhere, "agent.options.leash=-1")
    assert "`leash` must be at least 0, got -1" in said
    said = refused(capsys, elsewhere, "agent.name=mylab.alg:Reinforc")
    assert "mylab.alg:ReinforceConfig" in said
    said = refused(capsys, elsewhere, "agent.name=mylab.algo:ReinforceConfig")
    assert "did you mean `mylab.alg`" in said
    said = refused(capsys, elsewhere, "reward.train=mylab.ring:nearnes")
    assert "did you mean `mylab.ring:nearness`" in said
    assert not Path("runs").exists()


@pytest.mark.parametrize("agent", ["grpo", "flow_dppo", "drpo"])
def test_the_shipped_algorithms_take_its_environment(elsewhere, agent):
    from unirl_env.run.agent_setup import check_agent

    cfg = train.settings("ring", [f"agent.name={agent}"], str(elsewhere))
    assert cfg.agent.options == {}
    check_agent(cfg)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_its_commands_work_in_processes_of_their_own(elsewhere):
    """Installed by pip, with a remote runner and a remote learner; the same numbers as in one process."""
    site = elsewhere.parents[1]
    shutil.rmtree(site)
    copy = site.parent / "copy"
    shutil.copytree(HOME, copy)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--no-index"]
    pip = subprocess.run([*pip, "--target", str(site), str(copy)], capture_output=True, text=True)
    if pip.returncode:  # neither pip nor what builds need be installed where tests run
        shutil.copytree(copy / "mylab", site / "mylab")

    def door(*words):
        done = subprocess.run(
            [sys.executable, "-m", "unirl_env.train", *words],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    fresh = ["--config-dir", str(site / "mylab" / "recipes"), *RING, *SMALL]
    door(*fresh, "name=one")
    door(*fresh, "name=many", "rollout.num_env_runners=2", "rollout.num_learners=1")
    door("resume=runs/many", "iterations=3")
    one, many = (read_rows(Path("runs", name, "metrics.jsonl")) for name in ("one", "many"))
    for row, other in zip(one, many[:2], strict=True):
        assert row["reward"] == pytest.approx(other["reward"], abs=1e-4)
    assert len(many) == 3 and read_yaml(Path("runs/many/config.yaml")).agent.options == {"leash": 0.02}


def test_its_loss_is_a_pure_function_of_its_rows(elsewhere):
    from mylab.ring import RingDenoiser, nearness

    from unirl_env.types import Prompt, Sample

    east = [Prompt("0")]
    assert float(nearness([Sample(latent=torch.tensor([1.0, 0.0]))], east).value) == 0.0
    model = RingDenoiser()
    network, latent = model.network(), torch.tensor([[0.3, -0.2]])
    noise = model.velocity(network, latent, torch.ones(1), model.encode(east))
    torch.testing.assert_close(noise, latent, msg="pure noise tells nothing of the data, whose mean is 0")
