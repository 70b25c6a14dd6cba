"""The mixture as a member of the model families: an environment, a policy, a rollout."""

import pickle
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import unirl_env.functional as F
from unirl_env.envs import check_vector_env
from unirl_env.errors import ConfigError, ContractError
from unirl_env.models.gaussian_mixture import GaussianMixtureDenoiser, mixture_velocity
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.play import Rollout
from unirl_env.types import Prompt

ID = "unirl/GaussianMixture-v0"
make_vec = partial(gym.make_vec, ID, vectorization_mode="vector_entry_point")
LINE = {"model_options": {"means": [[-1.0], [1.0]], "stds": 0.4, "weights": [0.6, 0.4]}}


def make_rollout(actor, **options):
    def make_env(num_envs, num_steps=None):
        steps = {} if num_steps is None else {"num_steps": num_steps}
        return make_vec(num_envs, array_backend="torch", autoreset_mode="disabled", **{**options, **steps})

    return Rollout(make_env, actor)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, LINE, {"flat": True}], ids=["plane", "line", "flat"])
def test_gymnasium_finds_nothing_wrong(options):
    if not options.get("flat"):
        check_vector_env(make_vec(4, group_size=2, **options))
        check_vector_env(make_vec(4, array_backend="torch", autoreset_mode="disabled", **options))
    check_env(gym.make(ID, **options).unwrapped)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("flat", [False, True])
def test_stable_baselines_finds_nothing_wrong(flat):
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    checker.check_env(gym.make(ID, flat=flat), warn=False)


def test_a_flat_environment_is_the_same_environment():
    plain, flat = make_vec(3), make_vec(3, flat=("latent", "sigma", "sigma_next"))
    (obs, _), (row, _) = plain.reset(seed=4), flat.reset(seed=4)
    assert flat.single_observation_space.shape == (4,)
    assert flat.single_action_space.shape == (2,)
    for _ in range(10):
        expected = np.concatenate([obs["latent"], obs["sigma"][:, None], obs["sigma_next"][:, None]], axis=1)
        np.testing.assert_array_equal(row, expected)
        action = obs["latent"] * 0.9
        obs, reward, *_ = plain.step(action)
        row, flat_reward, *_ = flat.step(action)
        np.testing.assert_array_equal(reward, flat_reward)
    assert np.abs(reward).min() > 0
    assert gym.make(ID, flat=True).observation_space.shape == (3,)


def test_a_dot_shows_where_a_point_is():
    denoiser = GaussianMixtureDenoiser()
    pictures = denoiser.pictures(torch.tensor([[2.9, -2.9], [0.0, 1.5], [40.0, 0.0]]))
    assert [tuple(p.shape) for p in pictures] == [(3, 64, 64)] * 3
    corner, above = (picture[0].argmin().item() for picture in pictures[:2])
    assert divmod(corner, 64) == (62, 62)
    assert divmod(above, 64)[0] in (15, 16)
    assert float(pictures[2].min()) == 1.0
    env = gym.make(ID, render_mode="rgb_array", **LINE)
    env.reset(seed=0)
    assert env.render().shape == (64, 64, 3)


def test_the_network_starts_at_the_exact_velocity():
    denoiser = GaussianMixtureDenoiser()
    x, sigma = torch.randn(16, 2), torch.rand(16)
    found = denoiser.velocity(denoiser.network(), x, sigma, {})
    torch.testing.assert_close(found, mixture_velocity(x, sigma, denoiser.mixture))
    one, other = denoiser.network(), denoiser.network()
    one.means.data += 1
    assert not torch.equal(one.means, other.means)
    assert {name for name, p in other.named_parameters() if p.requires_grad} == {
        "log_weights",
        "means",
        "log_stds",
    }


@pytest.mark.parametrize("options", [{}, LINE], ids=["plane", "line"])
def test_the_ode_samples_the_mixture(options):
    """60 steps of the rollout's own ODE: mean and variance within five standard errors of the mixture's."""
    denoiser = GaussianMixtureDenoiser(**options.get("model_options", {"shift": 1.0}))
    batch = make_rollout(Actor(denoiser), denoiser=denoiser, num_steps=60, scorer="linear").collect(
        RolloutRequest([Prompt("a sample")], group_size=4000, seed=0, stochastic_steps=())
    )
    x = torch.stack([sample.latent for sample in batch.samples])
    mixture = denoiser.mixture
    share = torch.softmax(mixture.log_weights, 0)
    mean = share @ mixture.means
    variance = share @ (mixture.stds.square() + mixture.means.square()) - mean.square()
    assert bool(((x.mean(0) - mean).abs() < 5 * (variance / len(x)).sqrt()).all())
    # The variance also carries the Euler steps' own error, about 1 % at 60 steps.
    assert bool(((x.var(0) / variance - 1).abs() < 5 * (2 / len(x)) ** 0.5 + 0.015).all())
    torch.testing.assert_close(batch.rewards, x.sum(1))


def test_a_rollout_without_context_scores_itself_with_ratio_one():
    actor = Actor(GaussianMixtureDenoiser(), keep_reference=True)
    batch = make_rollout(actor).collect(
        RolloutRequest([Prompt("a"), Prompt("b")], group_size=3, seed=1, keep_mean=True)
    )
    phase = batch.select(torch.tensor([5, 0, 3])).phases["image"]
    assert phase.action.shape == (3, 9, 2)
    obs, action = phase.rows(torch.arange(3))
    again = actor.score(obs, action)
    torch.testing.assert_close(again.log_prob, phase.log_prob.flatten(), atol=1e-6, rtol=0)
    torch.testing.assert_close(again.mean, phase.mean.flatten(0, 1), atol=1e-6, rtol=0)
    with torch.no_grad():
        actor.network.means += 0.1
        assert not torch.allclose(actor.score(obs, action).log_prob, again.log_prob)
        with actor.reference():
            torch.testing.assert_close(actor.score(obs, action).log_prob, again.log_prob)
    again.log_prob.sum().backward()
    assert all(p.grad is not None for p in actor.network.parameters())


def test_the_schedule_ends_in_a_small_step():
    denoiser = GaussianMixtureDenoiser()
    assert torch.equal(denoiser.sigmas(10), F.flow_sigmas(10, shift=0.5))
    assert float(denoiser.sigmas(10)[-2]) < 0.06


def test_samples_travel_alone():
    samples = GaussianMixtureDenoiser().decode(torch.randn(1000, 2))
    assert len(pickle.dumps(samples[0])) < 1000


def test_half_precision_numbers_are_kept_in_it():
    denoiser = GaussianMixtureDenoiser(dtype="bfloat16")
    network = denoiser.network()
    assert network.means.dtype == torch.bfloat16
    assert denoiser.velocity(network, torch.zeros(1, 2), torch.ones(1), {}).dtype == torch.float32


def test_what_cannot_be_done_is_refused():
    with pytest.raises(ConfigError, match="lora_rank: null"):
        Actor(GaussianMixtureDenoiser(), lora=LoRAConfig())
    with pytest.raises(ContractError, match="guidance"):
        Actor(GaussianMixtureDenoiser(), guidance=2.0).velocity(
            {"latent": torch.zeros(1, 2), "sigma": torch.ones(1)}
        )
    with pytest.raises(ConfigError, match="options of model 'gaussian_mixture' do not fit"):
        make_vec(1, pretrained="somewhere")
    env = make_vec(1, autoreset_mode="disabled", scorer={"name": "linear", "weights": [1.0, 2.0, 3.0]})
    obs, _ = env.reset(seed=0)
    with pytest.raises(ContractError, match="`weights` must be one number"):
        for _ in range(10):
            obs, *_ = env.step(obs["latent"])
