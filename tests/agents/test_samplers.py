"""How latents are played: steps that explore, Euler's, and those of second order."""

import gymnasium as gym
import pytest
import torch
from batches import play
from ray.rllib.core import DEFAULT_MODULE_ID
from test_learner import play_spaces
from toy import toy_config

import unirl_env  # noqa: F401, registers the ids
from unirl_env.agents import GRPOConfig
from unirl_env.models.gaussian_mixture import GaussianMixtureDenoiser
from unirl_env.policies.actor import Actor
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.play import Rollout


@pytest.fixture(scope="module")
def policy():
    config = toy_config(GRPOConfig)
    config.validate()
    learner = config.build_learner(spaces={DEFAULT_MODULE_ID: play_spaces()})
    learner.policy.set_state({k: v + 0.3 for k, v in learner.policy.get_state().items()})
    return learner.policy


def test_the_second_order_reaches_the_odes_end_in_fewer_steps():
    options = {"means": [[-1.0, 0.3], [1.0, -0.2]], "stds": 0.4, "weights": [0.6, 0.4]}
    actor = Actor(GaussianMixtureDenoiser(**options))

    def make_env(num_envs, num_steps=None):
        return gym.make_vec(
            "unirl/GaussianMixture-v0",
            num_envs=num_envs,
            num_steps=num_steps,
            model_options=options,
            scorer="linear",
            vectorization_mode="vector_entry_point",
            array_backend="torch",
            autoreset_mode="disabled",
        )

    def ends(num_steps, second_order):
        asked = {"stochastic_steps": (), "num_steps": num_steps, "second_order": second_order}
        batch = Rollout(make_env, actor).collect(RolloutRequest(["a point"], seed=1, group_size=64, **asked))
        return torch.stack([sample.latent for sample in batch.samples])

    truth = ends(2048, False)
    error = {
        (second, steps): float((ends(steps, second) - truth).square().mean().sqrt())
        for second in (False, True)
        for steps in (16, 32, 64)
    }
    assert all(error[True, steps] < 0.5 * error[False, steps] for steps in (16, 32, 64)), error
    assert error[False, 64] > 0.4 * error[False, 32] and error[True, 64] < 0.4 * error[True, 32], error


def test_where_every_step_explores_nothing_is_of_second_order(policy):
    plain, mixed = (play(policy, stochastic_steps=range(5), second_order=second) for second in (False, True))
    assert torch.equal(plain.phases["image"].log_prob, mixed.phases["image"].log_prob)
    assert torch.equal(plain.phases["image"].action, mixed.phases["image"].action)


def test_around_a_window_the_other_steps_are_of_second_order(policy):
    steps = (3, 4)
    plain, mixed = (play(policy, stochastic_steps=steps, second_order=second) for second in (False, True))
    first, second = (batch.phases["image"] for batch in (plain, mixed))
    assert first.log_prob.shape == second.log_prob.shape == (32, 2)
    # The first two steps are Euler's, of which the second has no finite past; the third goes elsewhere.
    assert not torch.equal(first.observation["latent"][:, 0], second.observation["latent"][:, 0])
    rows, action = second.rows(torch.arange(32))
    scored = policy.actor.score(rows, action)
    torch.testing.assert_close(scored.log_prob.view(32, 2), second.log_prob, rtol=0, atol=1e-5)


def test_what_a_step_that_explored_leaves_is_a_path_of_its_own(policy):
    """The step after the window is Euler's from where the window ended."""
    batch = play(policy, stochastic_steps=(0, 3), second_order=True, keep_steps=True)
    early = play(policy, stochastic_steps=(0,), second_order=True)
    assert torch.equal(batch.phases["image"].action[:, 0], early.phases["image"].action[:, 0])


def test_an_evaluation_may_be_of_second_order():
    config = toy_config(GRPOConfig, policy={"eval_sampler": "dpm2m"})
    asked = config.mode.evaluation_options(config, 12)
    assert asked["second_order"] and asked["stochastic_steps"] == () and asked["num_steps"] == 12
    assert not config.mode.training_options(config, 0, checked=True)["second_order"]


@pytest.mark.parametrize(
    ("sampler", "estimator", "explores", "second"),
    [
        (None, None, True, False),
        ("mixed", None, True, True),
        (None, "elbo", False, False),
        ("dpm2m", "elbo", False, True),
        ("sde", "elbo", True, False),
    ],
)
def test_the_sampler_follows_from_the_estimator_unless_it_is_said(sampler, estimator, explores, second):
    config = toy_config(GRPOConfig, sampler=sampler, estimator=estimator)
    config.validate()
    asked = config.mode.training_options(config, 0, checked=True)
    assert bool(asked["stochastic_steps"]) is explores and asked["second_order"] is second
    assert asked["keep_steps"] is (estimator is None) and asked["keep_final"] is (estimator == "elbo")
