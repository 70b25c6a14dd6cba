"""The policy as RLlib sees it: three forward passes, and a state that is small, partial and of any dtype."""

import gymnasium as gym
import pytest
import torch

from unirl_env.errors import CheckpointError, ContractError
from unirl_env.policies.rl_module import GenerativePolicy

BOX = gym.spaces.Box(-16, 16, (2,))


def make_policy(**options):
    options = {"model": "toy:PointDenoiser", "lora": {"rank": 4}, **options}
    return GenerativePolicy(observation_space=BOX, action_space=BOX, model_config=options)


def observation(count=5):
    generator = torch.Generator().manual_seed(0)
    return {
        "latent": torch.randn(count, 2, generator=generator),
        "sigma": torch.full((count,), 0.8),
        "sigma_next": torch.full((count,), 0.6),
        "stochastic": torch.ones(count, dtype=torch.bool),
        "point": torch.randn(count, 2, generator=generator),
    }


def test_scoring_what_was_sampled_gives_the_same_step():
    policy, obs = make_policy(), observation()
    sampled = policy.forward_exploration({"obs": obs, "draws": torch.ones(5, 2)})
    assert not sampled["action_logp"].requires_grad
    scored = policy.forward_train({"obs": obs, "actions": sampled["actions"]})
    assert scored["log_prob"].requires_grad
    torch.testing.assert_close(scored["log_prob"], sampled["action_logp"], rtol=0, atol=1e-6)
    torch.testing.assert_close(scored["mean"], sampled["mean"])
    assert torch.equal(scored["latent"], sampled["actions"])


def test_what_denoises_has_a_velocity_and_what_writes_has_none():
    policy, obs = make_policy(), observation()
    velocity = policy.velocity("image", obs)
    assert velocity.requires_grad and torch.equal(velocity, policy.actor.velocity(obs))
    shared = {**obs, "point": obs["point"][:2], "context_row": torch.tensor([0, 1, 1, 0, 1])}
    assert policy.velocity("image", shared).shape == (5, 2)
    twice = {name: obs[name].repeat_interleave(2, 0) for name in ("latent", "sigma")}
    for wrong, words in (
        ({"point": obs["point"]}, r"got \{\}"),
        ({"latent": obs["latent"]}, r"got \{'latent': \[5, 2\]\}"),
        ({**shared, **twice}, r"'sigma': \[10\], 'context_row': \[5\]"),
        ({**obs, "sigma": torch.tensor(0.5)}, r"'sigma': \[\]"),
    ):
        with pytest.raises(ContractError, match=rf"{words}.*try rows.observed"):
            policy.velocity("image", wrong)
    both = GenerativePolicy(
        observation_space=BOX,
        action_space=BOX,
        model_config={"model": "unirl_env.models.tiny:TinyUnified", "lora": {"rank": 4}},
    )
    for writes in (
        lambda: both.velocity("text", obs),
        lambda: GenerativePolicy(
            observation_space=BOX,
            action_space=BOX,
            model_config={"model": "unirl_env.models.tiny:TinyQwen3", "lora": {"rank": 4}},
        ).velocity("text", obs),
    ):
        with pytest.raises(ContractError, match=r"got `text`, in which T\w+ acts; try `context.score`"):
            writes()


def test_inference_follows_the_ode():
    policy, obs = make_policy(), observation()
    mean = policy.forward_inference({"obs": obs})["actions"]
    velocity = policy.actor.velocity(obs)
    torch.testing.assert_close(mean, obs["latent"] - 0.2 * velocity.detach())


def test_the_state_is_the_trainable_weights_as_copies():
    policy = make_policy()
    state = policy.get_state()
    trainable = {n for n, p in policy.named_parameters() if p.requires_grad}
    assert len(state) == len(trainable) == 4 and all("lora" in name for name in state)
    state[next(iter(state))].add_(1.0)
    assert not torch.equal(state[next(iter(state))], policy.get_state()[next(iter(state))])


def test_a_partial_state_changes_what_it_names():
    policy = make_policy()
    before = policy.get_state()
    name = next(iter(before))
    policy.set_state(state={name: before[name] + 1.0})
    after = policy.get_state()
    torch.testing.assert_close(after[name], before[name] + 1.0)
    assert all(torch.equal(after[n], before[n]) for n in before if n != name)
    with pytest.raises(CheckpointError, match="nonsense"):
        policy.set_state({"nonsense": torch.zeros(1)})


def test_half_precision_survives_the_state():
    policy = make_policy(lora=None).to(torch.bfloat16)
    state = policy.get_state()
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    other = make_policy(lora=None).to(torch.bfloat16)
    other.set_state({name: tensor + 1 for name, tensor in state.items()})
    assert all(torch.equal(other.get_state()[name], state[name] + 1) for name in state)


def test_adapters_begin_alike_whatever_was_drawn_before():
    torch.manual_seed(1)
    first = make_policy().get_state()
    torch.manual_seed(2)
    drawn = torch.get_rng_state()
    second = make_policy().get_state()
    assert torch.equal(torch.get_rng_state(), drawn), "the global generator is left alone"
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = make_policy(seed=1).get_state()
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_training_mode_does_not_reach_the_network():
    policy = make_policy()
    policy.forward_train({"obs": observation(), "actions": torch.zeros(5, 2)})
    assert policy.training and not any(module.training for module in policy.actor.network.modules())


def test_the_reference_is_the_untrained_model():
    policy, obs = make_policy(), observation()
    base = policy.actor.velocity(obs)
    policy.set_state({name: tensor + 0.1 for name, tensor in policy.get_state().items()})
    assert not torch.allclose(policy.actor.velocity(obs), base)
    with policy.reference():
        torch.testing.assert_close(policy.actor.velocity(obs), base)


def test_an_incomplete_denoiser_is_named():
    with pytest.raises(ContractError, match=r"incomplete.*network"):
        make_policy(model="test_rl_module:Incomplete", models="denoiser")


class Incomplete:
    """Lacks everything."""


def test_rllibs_own_checkpoint_of_the_module(tmp_path):
    policy = make_policy()
    policy.set_state({name: tensor + 0.1 for name, tensor in policy.get_state().items()})
    policy.save_to_path(str(tmp_path))
    restored = GenerativePolicy.from_checkpoint(str(tmp_path))
    assert all(torch.equal(restored.get_state()[n], t) for n, t in policy.get_state().items())
