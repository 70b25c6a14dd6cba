"""Rewards become advantages: one number, one part for a phase, or a vector of parts (GDPO)."""

from types import SimpleNamespace

import pytest
import torch
from toy import nearness, toy_config

import unirl_env.functional as F
from unirl_env.agents import GRPOConfig
from unirl_env.agents.batching import credit
from unirl_env.episode import EpisodeBatch
from unirl_env.errors import ConfigError, ContractError
from unirl_env.types import Prompt, Scores

GROUP = torch.tensor([0, 0, 0, 1, 1, 1])
COARSE = torch.tensor([10.0, 20.0, 30.0, 5.0, 5.0, 50.0])
FINE = torch.tensor([0.03, 0.02, 0.01, 0.0, 0.02, 0.01])


def batch_of(scores, group=GROUP):
    count = len(scores)
    prompts = tuple(Prompt(str(int(number))) for number in group)
    return EpisodeBatch({}, scores, group, prompts, torch.arange(count))


def settings(**given):
    fixed = {
        "trained": ("image",),
        "phase_rewards": {},
        "advantage_parts": {},
        "advantage_scale": "group",
        "advantage_clip": None,
    }
    return SimpleNamespace(**{**fixed, **given})


def both(valid=None):
    return batch_of(Scores(COARSE + FINE, {"coarse": COARSE, "fine": FINE}, valid))


def test_a_sum_hears_the_loudest_part_and_gdpo_hears_both():
    summed, _ = credit(both(), settings())
    assert torch.allclose(summed["image"], F.group_advantages(COARSE, GROUP), atol=2e-3)
    parted, valid = credit(both(), settings(advantage_parts={"coarse": 1.0, "fine": 1.0}))
    # In the first group the parts are exact opposites of each other: neither wins.
    assert torch.allclose(parted["image"][:3], torch.zeros(3), atol=1e-6)
    assert parted["image"][3:].abs().max() > 0.5 and valid["image"].all()


def test_gdpo_by_its_equations():
    weights = {"coarse": 1.0, "fine": 0.5}
    found, _ = credit(both(), settings(advantage_parts=weights))
    total = torch.zeros(6, dtype=torch.float64)
    for name, part in (("coarse", COARSE), ("fine", FINE)):
        for rows in (slice(0, 3), slice(3, 6)):
            own = part[rows].double()
            total[rows] += weights[name] * (own - own.mean()) / own.std(unbiased=False)
    expected = total / total.std(unbiased=False)
    assert torch.allclose(found["image"].double(), expected, atol=1e-6)


def test_a_part_that_is_missing_for_an_episode_leaves_it_out():
    fine = FINE.clone()
    fine[1] = torch.nan
    batch = batch_of(Scores(COARSE, {"coarse": COARSE, "fine": fine}))
    found, valid = credit(batch, settings(advantage_parts={"coarse": 1.0, "fine": 1.0}))
    assert valid["image"].tolist() == [True, False, True, True, True, True]
    assert found["image"][1] == 0 and found["image"].isfinite().all()


def test_a_phase_may_have_a_part_of_its_own_beside_gdpo():
    chosen = settings(
        trained=("text", "image"), phase_rewards={"text": "fine"}, advantage_parts={"coarse": 1.0}
    )
    found, _ = credit(both(), chosen)
    assert torch.equal(found["text"], F.group_advantages(FINE, GROUP))
    assert torch.equal(found["image"], F.gdpo_advantages({"coarse": COARSE}, GROUP, {"coarse": 1.0}))


def test_leave_one_out():
    found, _ = credit(batch_of(Scores(COARSE)), settings(advantage_scale="leave_one_out"))
    assert found["image"].tolist() == [-15.0, 0.0, 15.0, -22.5, -22.5, 45.0]
    found, _ = credit(batch_of(Scores(COARSE)), settings(advantage_scale="leave_one_out", advantage_clip=20))
    assert found["image"].tolist() == [-15.0, 0.0, 15.0, -20.0, -20.0, 20.0]


@pytest.mark.parametrize(
    "given", [{"advantage_parts": {"beauty": 1.0}}, {"phase_rewards": {"image": "beauty"}}]
)
def test_a_part_that_nobody_gives_is_an_error_unless_nothing_was_judged(given):
    with pytest.raises(ContractError, match="'beauty'; there are coarse, fine"):
        credit(both(), settings(**given))
    found, valid = credit(batch_of(Scores.failed(6)), settings(**given))
    assert not valid["image"].any() and (found["image"] == 0).all()


def two_parts(samples, prompts):
    near = nearness(samples, prompts).value
    low = -torch.stack([sample.latent[1] for sample in samples]) * 1e-3
    return Scores(near + low, {"near": near, "low": low})


@pytest.mark.ray
def test_an_agent_trains_on_a_vector_of_rewards(cluster):
    agents = []
    for parts in ({}, {"near": 1.0, "low": 1.0}):
        settings = {"num_minibatches": 1, "group_size": 16, "lr": 1e-2, "advantage_parts": parts}
        config = toy_config(GRPOConfig, **settings)
        config.env_config = {**config.env_config, "scorer": two_parts}
        agents.append(config.build_algo())
    lows = []
    for agent in agents:
        for _ in range(10):
            agent.train()
        lows.append(agent.iteration_metrics["reward/low"])
        agent.stop()
    # A thousandth of the scale: the sum never hears it, normalised within its group it is learned.
    assert lows[1] > lows[0] + 3e-4


@pytest.mark.parametrize(
    "given",
    [
        {"advantage_parts": {"near": 0.0}},
        {"advantage_parts": {"near": float("nan")}},
        {"advantage_parts": {"near": 1.0}, "advantage_scale": "batch"},
        {"advantage_scale": "leave_two_out"},
    ],
)
def test_settings_that_cannot_work_are_refused(given):
    with pytest.raises(ConfigError, match="advantage_"):
        toy_config(GRPOConfig, **given).validate()
