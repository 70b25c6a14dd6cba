"""Exact measures against simulation in the environments, sums by hand, closed forms, and trained agents."""

import dataclasses
import math
from itertools import product

import pytest
import torch

import unirl_env.functional as F
from unirl_env import train
from unirl_env.bench import exact
from unirl_env.errors import CheckpointError, ConfigError
from unirl_env.models.gaussian_mixture import tilted_mixture
from unirl_env.policies.actor import Actor
from unirl_env.run.record import checkpoint as checkpoints
from unirl_env.run.world_setup import world_options
from unirl_env.worlds.world import world_of

MEASURES = {
    "diffusion/line": exact.line,
    "diffusion/gaussian_mixture": exact.mixture,
    "mdp/tabular_tokens": exact.tokens,
}


def moved(cfg, by=0.4):
    """A network of these settings somewhere else."""
    network = exact.network_of(cfg)
    with torch.no_grad():
        for place, parameter in enumerate(network.parameters()):
            generator = torch.Generator().manual_seed(place)
            parameter += by * torch.randn(parameter.shape, generator=generator)
    return network


def simulated(cfg, network, episodes, seed=0):
    """The reward `[B]` and the divergence `[B]` from the untrained network of episodes in the environment."""
    world = world_of(cfg.model.env, world_options(cfg))
    env = world.env(episodes, group_size=1, array_backend="torch", autoreset_mode="disabled")
    settings = {} if cfg.mode == "mdp" else {"eta": cfg.policy.eta, "dynamics": cfg.policy.dynamics}
    actor, untrained = (Actor(world.model, **settings) for _ in range(2))
    actor.network.load_state_dict(network.state_dict())
    obs, _ = env.reset(seed=seed)
    seeds, kl, over, step = torch.arange(episodes), torch.zeros(episodes), False, 0
    with torch.no_grad():
        while not over:
            if cfg.mode == "mdp":
                draws = F.keyed_uniform(seeds, step)
                new, old = (torch.log_softmax(each.network(obs), 1) for each in (actor, untrained))
                kl += (new.exp() * (new - old)).sum(1)
                action = actor.act(obs, draws)[0]
            else:
                draws = F.keyed_noise(seeds, step, (1,))
                made, theirs = actor.act(obs, draws), untrained.act(obs, draws)
                noisy = made.std > 0
                kl += torch.where(noisy, F.gaussian_kl(made.mean, theirs.mean, made.std.clamp_min(1e-6)), 0.0)
                action = made[0]
            obs, reward, terminated, _, _ = env.step(action)
            over, step = bool(terminated.all()), step + 1
    return reward, kl


@pytest.mark.parametrize(
    ("recipe", "settings", "episodes"),
    [
        ("diffusion/line", [], 20_000),
        ("diffusion/line", ["reward.train={name: near, place: 1.2, width: 0.3}"], 20_000),
        ("diffusion/line", ["policy.dynamics=cps", "policy.eta=0.6", "model.num_steps=6"], 20_000),
        ("mdp/tabular_tokens", [], 8_000),
        ("mdp/tabular_tokens", ["reward.train={name: alphabet, whole_word: true}"], 8_000),
    ],
)
def test_a_measure_is_what_the_environment_pays(recipe, settings, episodes):
    """Within four standard errors."""
    cfg = train.settings(recipe, settings)
    network = moved(cfg)
    found = MEASURES[recipe](cfg, network)
    reward, kl = simulated(cfg, network, episodes)
    beta = cfg.agent.reference_kl * cfg.rollout.group_size / (cfg.rollout.group_size - 1)
    assert found["kl"] > 0.05
    for name, samples in (("reward", reward), ("kl", kl), ("objective", reward - beta * kl)):
        error = float(samples.std()) / math.sqrt(episodes)
        assert found[name] == pytest.approx(float(samples.mean()), abs=4 * error), name
    assert found["objective"] < found["optimum"]
    assert found["regret"] == found["optimum"] - found["objective"]


def test_words_are_added_up_by_hand():
    """Three letters, words of two: nine words after each of two prompts."""
    cfg = train.settings(
        "mdp/tabular_tokens",
        [
            "model.options.model_options={vocabulary: 3, length: 2}",
            "prompts.train=[A,C]",
            "rollout.num_prompts=2",
            "reward.train={name: alphabet, vocabulary: 3}",
            "reward.heldout={name: letter, letter: B}",
            "agent.advantage_scale=leave_one_out",
            "agent.reference_kl=0.2",
        ],
    )
    network, untrained = moved(cfg), exact.network_of(cfg)
    objective, kls, rewards, heldout, best = [], [], [], [], []
    for prompt in (0, 2):
        right = [(prompt + 1) % 3, (prompt + 2) % 3]
        tables = []
        for each in (network, untrained):
            chance = torch.softmax(each.logits.detach().double()[prompt * 4 : prompt * 4 + 4], 1).tolist()
            tables.append({(a, b): chance[0][a] * chance[1 + a][b] for a, b in product(range(3), repeat=2)})
        new, old = tables
        paid = {word: (int(word[0] == right[0]) + int(word[1] == right[1])) / 2 for word in new}
        rewards.append(sum(new[word] * paid[word] for word in new))
        kls.append(sum(new[word] * math.log(new[word] / old[word]) for word in new))
        heldout.append(sum(new[word] * word.count(1) / 2 for word in new))
        objective.append(rewards[-1] - 0.2 * kls[-1])
        best.append(0.2 * math.log(sum(old[word] * math.exp(paid[word] / 0.2) for word in new)))
    found = exact.tokens(cfg, network)
    expected = {
        "objective": objective,
        "reward": rewards,
        "kl": kls,
        "heldout": heldout,
        "optimum": best,
        "class_optimum": best,
    }
    for name, numbers in expected.items():
        assert found[name] == pytest.approx(sum(numbers) / 2, abs=1e-6), name
    watched = exact.tokens_heldout(cfg, network)
    assert watched["reward"] == pytest.approx(found["heldout"], abs=1e-9) and watched["kl"] == found["kl"]
    assert "heldout" not in watched


def test_the_line_knows_what_is_known():
    """Of the group size that makes beta 1; see `tests/agents/test_optimum.py`."""
    cfg = train.settings("diffusion/line", ["agent.advantage_scale=leave_one_out"])
    found = exact.line(cfg, exact.network_of(cfg))
    assert found["base"] == found["objective"] == pytest.approx(-0.1812, abs=1e-4)
    assert found["kl"] == 0
    assert found["gaussian_optimum"] == pytest.approx(0.3331, abs=1e-4)
    assert found["fixed_point"] < found["gaussian_optimum"] < found["optimum"]
    best = exact.network_of(cfg)
    numbers = [0.0, 1.48501, -0.79583, 1.1803, -0.92515, -0.90541]
    with torch.no_grad():
        best.log_weights.copy_(torch.tensor(numbers[:2]))
        best.means.copy_(torch.tensor(numbers[2:4])[:, None])
        best.log_stds.copy_(torch.tensor(numbers[4:])[:, None])
    assert exact.line(cfg, best)["objective"] == pytest.approx(0.3223, abs=1e-4)


def test_the_mixture_knows_its_tilt():
    cfg = train.settings("diffusion/gaussian_mixture", ["agent.advantage_scale=leave_one_out"])
    network = exact.network_of(cfg)
    with torch.no_grad():
        tilt = tilted_mixture(network.mixture.to(torch.float64), torch.ones(2).double(), 1.0)
    base = exact.mixture(cfg, network)
    assert base["optimum"] == pytest.approx(float(tilt.objective), abs=1e-5)
    assert [base["base"], base["objective"], base["kl"]] == pytest.approx([-0.42, -0.42, 0.0], abs=1e-5)
    with torch.no_grad():
        network.log_weights.copy_(tilt.mixture.log_weights)
        network.means.copy_(tilt.mixture.means)
        network.log_stds.copy_(tilt.mixture.stds.log())
    found = exact.mixture(cfg, network)
    assert found["regret"] == pytest.approx(0.0, abs=1e-5)
    assert [found["reward"], found["kl"]] == pytest.approx([float(tilt.reward), float(tilt.kl)], abs=1e-4)


def test_a_price_is_that_of_the_group():
    for scale, expected in (("none", 0.5 * 4 / 3), ("leave_one_out", 0.5)):
        words = [f"agent.advantage_scale={scale}", "agent.reference_kl=0.5", "rollout.group_size=4"]
        cfg = train.settings("mdp/tabular_tokens", words)
        found = exact.tokens(cfg, moved(cfg))
        assert found["reward"] - found["objective"] == pytest.approx(expected * found["kl"])


@pytest.mark.parametrize("recipe", MEASURES)
def test_a_network_comes_back_from_its_checkpoint(recipe, tmp_path):
    cfg = train.settings(recipe)
    network = moved(cfg)
    tensors = {f"policy/{name}": tensor for name, tensor in network.state_dict().items()}
    path = checkpoints.write(tmp_path, 3, {**tensors, "optimizer/step/x": torch.ones(1)}, {}).path
    again = exact.network_of(cfg, path)
    assert MEASURES[recipe](cfg, again) == MEASURES[recipe](cfg, network)
    other = "diffusion/line" if recipe != "diffusion/line" else "mdp/tabular_tokens"
    with pytest.raises(CheckpointError, match="must hold the weights of"):
        exact.network_of(train.settings(other), path)


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("diffusion/line", ["agent.advantage_scale=group"], "`agent.advantage_scale` must be none"),
        ("diffusion/line", ["agent.reference_kl=0"], "`agent.reference_kl` must be positive"),
        ("diffusion/line", ["steps.kind=fraction"], "`steps.kind` must be all"),
    ],
)
def test_what_is_no_single_number_is_refused(recipe, settings, message):
    cfg = train.settings(recipe, settings)
    with pytest.raises(ConfigError, match=message):
        MEASURES[recipe](cfg, exact.network_of(cfg))


def test_other_worlds_are_refused():
    cfgs = {recipe: train.settings(recipe) for recipe in MEASURES}
    for recipe, other, message in (
        ("diffusion/line", "diffusion/gaussian_mixture", "on a line"),
        ("diffusion/line", "mdp/tabular_tokens", "on a line"),
        ("diffusion/gaussian_mixture", "mdp/tabular_tokens", "in one or two dimensions"),
        ("mdp/tabular_tokens", "diffusion/line", "tabular tokens"),
    ):
        with pytest.raises(ConfigError, match=message):
            MEASURES[recipe](cfgs[other], exact.network_of(cfgs[other]))
    with pytest.raises(ConfigError, match=r"`reward.heldout` must be a reward"):
        exact.line_heldout(cfgs["diffusion/line"], exact.network_of(cfgs["diffusion/line"]))
    adapters = dataclasses.replace(cfgs["diffusion/line"].policy, lora_rank=4)
    with pytest.raises(ConfigError, match=r"`policy.lora_rank` must be null"):
        exact.network_of(dataclasses.replace(cfgs["diffusion/line"], policy=adapters))
