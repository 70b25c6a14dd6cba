"""The average of the weights: how it follows, who plays with it, and that a run goes on with it exactly."""

import pytest
import torch
from batches import play, shards_of
from ray.rllib.core import DEFAULT_MODULE_ID
from test_learner import learn, play_spaces
from toy import POINTS, toy_config

from unirl_env.agents import GRPOConfig
from unirl_env.agents.reference import own_reference_kls, reference_kls
from unirl_env.errors import CheckpointError, ContractError
from unirl_env.prompts.sources import PromptSource


def configured(**settings):
    config = toy_config(GRPOConfig, **{"ema_decay": 0.5, "clip_low": 1e-2, **settings})
    config.validate()
    return config


def learner_with(**settings):
    return configured(**settings).build_learner(spaces={DEFAULT_MODULE_ID: play_spaces()})


def split(state):
    average = {name.removeprefix("ema:"): t for name, t in state.items() if name.startswith("ema:")}
    return {name: state[name] for name in average}, average


@pytest.mark.parametrize("lora_rank", [8, None])
def test_the_average_begins_as_the_weights_and_follows_them(lora_rank):
    learner = learner_with(policy={"lora_rank": lora_rank}, ema_rise=0.1, ema_delay=1)
    weights, average = split(learner.policy.get_state())
    assert weights and all(torch.equal(weights[name], average[name]) for name in weights)
    for iteration, decay in enumerate((0.1, 0.3, 0.5)):  # 2, 4 and 6 steps, less the delay, times the rise
        before = average
        learn(learner, play(learner.policy, seed=iteration), iteration=iteration)
        weights, average = split(learner.policy.get_state())
        for name in weights:
            expected = decay * before[name] + (1 - decay) * weights[name]
            torch.testing.assert_close(average[name], expected, rtol=1e-5, atol=1e-7)
    assert not all(torch.equal(weights[name], average[name]) for name in weights)


def test_under_the_average_everything_is_the_averages_and_afterwards_nothing_is():
    learner = learner_with()
    learn(learner, play(learner.policy))
    actor = learner.policy.actor
    own = play(learner.policy, stochastic_steps=())
    with actor.under("ema"):
        averaged = play(learner.policy, stochastic_steps=())
        with pytest.raises(ContractError, match="one of trained, reference, ema, got 'old'"):
            with actor.under("old"):
                pass
    again = play(learner.policy, stochastic_steps=())
    latents = [torch.stack([s.latent for s in batch.samples]) for batch in (own, averaged, again)]
    assert torch.equal(latents[0], latents[2]) and not torch.equal(latents[0], latents[1])
    _, average = split(learner.policy.get_state())
    learner.policy.set_state(average)  # as trained weights
    assert torch.equal(
        latents[1], torch.stack([s.latent for s in play(learner.policy, stochastic_steps=()).samples])
    )


def test_gradients_of_the_trained_weights_survive_a_look_through_others():
    learner = learner_with()
    batch = play(learner.policy)
    observation, action = batch.phases["image"].rows(torch.arange(4))
    actor = learner.policy.actor
    parameters = [p for p in actor.network.parameters() if p.requires_grad]

    def gradient(look):
        new = actor.score(observation, action)
        if look:
            actor.copies["ema"] = {name: t + 1.0 for name, t in actor.copies["ema"].items()}
            with torch.no_grad(), actor.under("ema"):
                actor.score(observation, action)
        return torch.autograd.grad(new.log_prob.sum(), parameters)

    for plain, looked in zip(gradient(False), gradient(True), strict=True):
        assert torch.equal(plain, looked)


def test_a_state_with_an_average_needs_a_policy_that_keeps_one():
    state = learner_with().policy.get_state()
    with pytest.raises(CheckpointError, match="ema:"):
        learner_with(ema_decay=None).policy.set_state(state)


def test_the_kl_that_returns_are_charged_with_is_that_of_the_weights_that_played():
    charged = {"kl_in": "return", "reference_kl": 1.0, "anchor": "replay"}
    learner = learner_with(rollout_weights="ema", ema_decay=0.9, **charged)
    batch = play(learner.policy)
    learn(learner, batch)
    (shard,) = shards_of(batch)
    paid = own_reference_kls(learner, [shard])[1]["image"]
    trained = reference_kls(learner, shard)["image"]
    learner.policy.set_state(split(learner.policy.get_state())[1])  # the average, as trained weights
    torch.testing.assert_close(paid, reference_kls(learner, shard)["image"], rtol=1e-4, atol=1e-7)
    assert paid.sum() < 0.5 * trained.sum()


def build(processes):
    config = configured(rollout_weights="ema", ema_decay=0.9)
    if processes:
        config = config.env_runners(num_env_runners=processes).learners(num_learners=processes)
    return config.build_algo()


def played_latents(agent):
    return torch.stack([sample.latent for sample in agent.last_batch.samples])


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("processes", [0, 1])
def test_a_run_that_plays_the_average_goes_on_bit_for_bit(processes, cluster):
    whole, prompts = build(processes), list(PromptSource.of(POINTS))
    for _ in range(2):
        whole.train()
    tensors, meta = whole.run_state()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    whole.train()
    state = {name.removeprefix("policy/"): t for name, t in whole.run_state()[0].items()}
    trained, average = split(state)
    assert any(not torch.equal(trained[name], average[name]) for name in trained)
    latents, evaluated = played_latents(whole), whole.rollout_eval(prompts, samples_per_prompt=2).rewards
    first = whole.run_state()[0]
    whole.stop()
    resumed = build(processes)
    resumed.load_run_state(tensors, meta)
    resumed.train()  # its self-check finds ratio one: it looks under the weights that played
    assert torch.equal(latents, played_latents(resumed))
    second = resumed.run_state()[0]
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(evaluated, resumed.rollout_eval(prompts, samples_per_prompt=2).rewards)
    resumed.stop()
