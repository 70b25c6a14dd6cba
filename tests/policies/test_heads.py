"""A head draws and scores by one function, and is what it says against torch's own distributions."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from mdp_cases import Throw, Walk
from torch import distributions

from unirl_env.errors import ConfigError, ContractError
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.policies.distributions import Categorical, Gaussian, distribution_over

SEEDS = torch.arange(1, 4001)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_categorical_is_torchs(temperature):
    head, logits = (
        distribution_over(spaces.Discrete(3, start=2), temperature=temperature),
        torch.randn(4000, 3),
    )
    step = head.step(logits, draws=head.draws(SEEDS, 0, torch.device("cpu")))
    expected = distributions.Categorical(logits=logits / temperature)
    assert torch.allclose(step.log_prob, expected.log_prob(step.token - 2), atol=1e-6)
    assert torch.allclose(step.entropy, expected.entropy(), atol=1e-6)
    shares = torch.stack([(step.token - 2 == k).float() for k in range(3)], 1).mean(0)
    assert torch.allclose(shares, expected.probs.mean(0), atol=0.03)
    assert head.step(logits).token.equal(logits.argmax(1) + 2)
    again = head.step(logits, action=step.token)
    assert again.log_prob.equal(step.log_prob) and again.token.equal(step.token)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_gaussian_is_torchs(temperature):
    head = distribution_over(spaces.Box(-1, 1, (2, 3)), temperature=temperature)
    mean, log_std = torch.randn(4000, 2, 3), torch.randn(2, 3)
    step = head.step((mean, log_std), draws=head.draws(SEEDS, 0, torch.device("cpu")))
    expected = distributions.Normal(mean, log_std.exp() * math.sqrt(temperature))
    assert torch.allclose(step.log_prob, expected.log_prob(step.action).sum((1, 2)), atol=1e-4)
    assert torch.allclose(step.entropy, expected.entropy().sum((1, 2)), atol=1e-5)
    assert torch.allclose((step.action - mean).std(0), log_std.exp() * math.sqrt(temperature), rtol=0.06)
    assert head.step((mean, log_std)).action.equal(mean)
    again = head.step((mean, log_std), action=step.action)
    assert again.log_prob.equal(step.log_prob)


def test_scores_have_gradients_and_draws_have_none():
    logits = torch.zeros(2, 3, requires_grad=True)
    step = Categorical(spaces.Discrete(3)).step(logits, action=torch.tensor([0, 2]))
    (step.log_prob.sum() + step.entropy.sum()).backward()
    assert torch.allclose(logits.grad, torch.tensor([[2, -1, -1], [-1, -1, 2]]) / 3)
    mean = torch.zeros(2, 1, requires_grad=True)
    drawn = Gaussian(spaces.Box(-1, 1, (1,))).step((mean, torch.zeros(1)), draws=torch.ones(2, 1))
    assert not drawn.action.requires_grad and drawn.log_prob.requires_grad


@pytest.mark.parametrize(
    "space",
    [spaces.MultiDiscrete([2, 2]), spaces.Box(0, 1, (), np.float32), spaces.Box(0, 9, (2,), int), None],
)
def test_actions_that_no_head_knows(space):
    with pytest.raises(ConfigError, match="`action_space` must be Discrete, or a Box"):
        distribution_over(space)


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.Box(-1, 1, (2,))])
def test_a_temperature_that_is_none(space):
    with pytest.raises(ConfigError, match="`temperature` must be positive, got 0"):
        distribution_over(space, temperature=0)


@pytest.mark.parametrize(
    "space, output, words",
    [
        (spaces.Discrete(3), torch.zeros(2, 4), r"logits \[N, 3\], got \[2, 4\]"),
        (spaces.Discrete(3), (torch.zeros(2, 3),), r"logits \[N, 3\], got tuple"),
        (spaces.Box(-1, 1, (2,)), torch.zeros(2, 2), "a mean and a log-std"),
        (spaces.Box(-1, 1, (2,)), (torch.zeros(2, 3), torch.zeros(2)), r"got \[2, 3\] and \[2\]"),
        (spaces.Box(-1, 1, (2,)), (torch.zeros(2, 2), torch.zeros(3)), r"got \[2, 2\] and \[3\]"),
        (spaces.Box(-1, 1, (2,)), (torch.full((2, 2), math.nan), torch.zeros(2)), "finite mean"),
    ],
)
def test_a_network_that_returns_something_else(space, output, words):
    with pytest.raises(ContractError, match=words):
        distribution_over(space).step(output)


@pytest.mark.parametrize("rows", [1, 3, 5, 8])
def test_lots_of_one_size_change_no_bit_whatever_the_batch(rows):
    for process in (Walk(rows_per_forward=rows), Throw(rows_per_forward=rows)):
        actor, count = Actor(process), 7
        for parameter in actor.parameters():
            torch.nn.init.normal_(parameter)
        seen = {name: torch.randn(count, 5 if name == "place" else 2) for name in ("place", "target")}
        draws = actor.head().distribution.draws(SEEDS[:count], 0, torch.device("cpu"))
        whole = actor.act(seen, draws)
        apart = [
            actor.act({k: v[i : i + 1] for k, v in seen.items()}, draws[i : i + 1]) for i in range(count)
        ]
        for field in range(3):
            assert whole[field].equal(torch.cat([step[field] for step in apart]))


def test_adapters_where_the_process_names_layers():
    actor = Actor(Walk(), lora=LoRAConfig(rank=2))
    assert set(actor.trainable_state()) == {
        "logits.lora_A.default.weight",
        "logits.lora_B.default.weight",
    }
    with pytest.raises(ConfigError, match="Throw names no layers for adapters"):
        Actor(Throw(), lora=LoRAConfig(rank=2))


def test_weights_are_written_by_the_names_of_the_network(tmp_path):
    from safetensors.torch import load_file

    actor = Actor(Walk(), lora=LoRAConfig(rank=2))
    with torch.no_grad():
        for parameter in actor.trainable_state().values():
            parameter.normal_()
    actor.save_weights(str(tmp_path))
    actor.save_adapters(str(tmp_path))
    plain = Walk().network()
    plain.load_state_dict(load_file(tmp_path / "model.safetensors"))
    seen = {"place": torch.eye(5)}
    assert torch.allclose(plain(seen), actor.network(seen), atol=1e-6)
    assert len(load_file(tmp_path / "adapters.safetensors")) == 2
