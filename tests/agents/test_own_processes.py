"""Agents on processes whose optima are known, by their own mode and by one that a user hands over."""

import mdp_cases
import plain_ring  # noqa: F401, is named below
import pytest
import torch
from mdp_cases import WAGES

import unirl_env
from unirl_env.agents import GRPOConfig
from unirl_env.agents.batching import share_out
from unirl_env.agents.kinds import KINDS
from unirl_env.episode import EpisodeBatch, Phase
from unirl_env.functional import grpo_loss
from unirl_env.models.process import MDP
from unirl_env.types import Prompt, Scores

ALL_WEIGHTS = {"lora_rank": None, "eval_temperature": 0}

unirl_env.register(
    "ring/Ring-v0",
    mode="plain_ring:Rings",
    compass="plain_ring:Compass",
    prompts=["0", "3"],
    scorer="plain_ring:at_home",
)


def test_the_gradient_at_ratio_one_is_the_closed_one():
    """Of a table of logits: minus the mean over transitions of A (1[a] - pi)."""
    network = mdp_cases.WalkNetwork()
    place = torch.nn.functional.one_hot(torch.tensor([[1, 2, 3], [2, 1, 1]]), 5).float()
    action = torch.tensor([[3, 4, 4], [4, 3, -1]])
    mask = torch.tensor([[True] * 3, [True, True, False]])
    phase = Phase(
        {"place": place}, action, torch.full((2, 3), 0.5).log() * mask, mask, ragged=True, kind="discrete"
    )
    batch = EpisodeBatch(
        {"actions": phase}, Scores([1.0, 0.0]), torch.tensor([0, 0]), (Prompt("2"),) * 2, torch.tensor([1, 2])
    )
    advantages = torch.tensor([0.7, -1.3])
    (shard,) = share_out(batch, {"actions": advantages}, num_minibatches=1, num_learners=1)
    denominator = shard.denominators[0]["actions"]
    rows = KINDS["discrete"].rows(shard, "actions", torch.arange(2), denominator)
    assert denominator == 5 and len(rows.action) == 5
    log_prob = torch.log_softmax(network(rows.observation), 1).gather(1, rows.action[:, None] - 3)[:, 0]
    loss, _ = grpo_loss(
        log_prob, rows.old_log_prob, rows.weighted, clip_low=0.2, denominator=rows.denominator
    )
    loss.backward()
    expected = torch.zeros(2, 5)
    for episode, step in mask.nonzero().tolist():
        chosen = torch.nn.functional.one_hot(action[episode, step] - 3, 2).float()
        expected -= torch.outer(chosen - 0.5, place[episode, step]) * advantages[episode] / 5
    assert torch.allclose(network.logits.weight.grad, expected, atol=1e-6)


@pytest.fixture
def build(cluster):
    agents = []

    def build(env, runners=0, learners=0, **settings):
        settings = {"policy": ALL_WEIGHTS, **settings}
        config = GRPOConfig().environment(env).training(**settings)
        config = config.env_runners(num_env_runners=runners).learners(num_learners=learners)
        agents.append(config.build_algo())
        return agents[-1]

    yield build
    for agent in agents:
        agent.stop()


def network(agent):
    return agent.learner_group._learner.policy.actor.network


@pytest.mark.ray
def test_a_walk_learns_the_way(build):
    agent = build("cases/Walk-v0", num_prompts=3, group_size=16, lr=0.1)
    agent.train()
    assert agent.iteration_metrics["self_check/ratio"] == agent.iteration_metrics["gap_max"] == 0.0
    for _ in range(19):
        agent.train()
    right = torch.softmax(network(agent)({"place": torch.eye(5)}), 1)[1:4, 1]
    assert (right > 0.9).all()
    assert agent.rollout_eval(agent.source.take(0, 3, seed=0)).rewards.tolist() == [1.0] * 3


@pytest.mark.ray
def test_a_throw_learns_to_aim_at_the_target(build):
    agent = build("cases/Throw-v0", num_prompts=3, group_size=32, lr=0.05)
    for _ in range(40):
        agent.train()
    learned = network(agent)
    assert torch.allclose(learned.mean.weight, torch.eye(2), atol=0.2)
    assert torch.allclose(learned.mean.bias, torch.zeros(2), atol=0.2)
    assert (learned.log_std < -0.7).all()


@pytest.mark.ray
def test_the_optimum_with_a_kl_is_the_tilted_policy(build):
    """max E[r] - beta KL(pi, ref) has pi = ref exp(r / beta), up to a factor."""
    agent = build(
        "cases/Arms-v0", num_prompts=1, group_size=512, lr=0.05, advantage_scale="none", reference_kl=0.5
    )
    for _ in range(60):
        agent.train()
    best = torch.softmax(torch.tensor([0.5, 0.0, -0.5]) + torch.tensor(WAGES) / 0.5, 0)
    assert torch.allclose(torch.softmax(network(agent).logits, 0), best, atol=0.05)


@pytest.mark.ray
def test_a_mode_that_a_user_hands_over_trains_a_plain_environment(build):
    agent = build("ring/Ring-v0", num_prompts=2, group_size=64, lr=0.1)
    assert agent.config.mode.name == "ring" and agent.config.trained == ("actions",)
    rewards = []
    for _ in range(12):
        agent.train()
        rewards.append(agent.iteration_metrics["reward"])
    assert rewards[-1] > rewards[0] + 0.15


@pytest.mark.ray
def test_a_resumed_agent_goes_on_bit_for_bit(build):
    settings = {"num_prompts": 3, "group_size": 8, "lr": 0.1, "num_minibatches": 2}
    straight = build("cases/Walk-v0", **settings)
    for _ in range(2):
        straight.train()
    tensors, meta = straight.run_state()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    resumed = build("cases/Walk-v0", **settings)
    resumed.load_run_state(tensors, meta)
    for _ in range(2):
        straight.train()
        resumed.train()
    assert straight.iteration_metrics["loss"] == resumed.iteration_metrics["loss"]
    for one, other in zip(network(straight).parameters(), network(resumed).parameters(), strict=True):
        assert one.equal(other)


@pytest.mark.ray
def test_weights_are_left_behind(build, tmp_path):
    from safetensors.torch import load_file

    agent = build("cases/Walk-v0", num_prompts=3, group_size=8)
    agent.train()
    agent.export_weights(tmp_path)
    plain = mdp_cases.WalkNetwork()
    plain.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert plain.logits.weight.equal(network(agent).logits.weight) and issubclass(mdp_cases.Walk, MDP)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("env", ["mdp_cases:cases/Walk-v0", "mdp_cases:cases/Throw-v0"])
def test_several_processes_give_the_same_curve(build, env):
    settings = {"num_prompts": 2, "group_size": 8, "lr": 0.1, "num_minibatches": 2}
    one, several = build(env, **settings), build(env, runners=2, learners=2, **settings)
    for _ in range(2):
        one.train()
        several.train()
    assert one.iteration_metrics["reward"] == several.iteration_metrics["reward"]
    weights = [agent.run_state()[0] for agent in (one, several)]
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor.float(), weights[1][name].float(), atol=1e-5), name
