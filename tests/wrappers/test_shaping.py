"""Potential-based shaping: the return changes by minus the first potential, and by nothing else."""

import numpy as np
import pytest
import torch
from fakes import FakeDenoiseEnv, walk
from gymnasium.wrappers.vector import ClipReward, TransformReward
from hypothesis import given, settings
from hypothesis import strategies as st

from unirl_env.errors import ConfigError, ContractError
from unirl_env.wrappers import PotentialShaping


def potential(obs):
    return (obs["latent"] ** 2).reshape(len(obs["sigma"]), -1).sum(1) - 3 * obs["sigma"]


def returns(env, gamma, seed, steps):
    """Discounted returns of one episode per row, and the first potentials."""
    obs, _ = env.reset(seed=seed)
    first, total = np.asarray(potential(obs), dtype=float), np.zeros(env.num_envs)
    draw = np.random.default_rng(seed)
    for k in range(steps):
        actions = torch.from_numpy(draw.standard_normal(env.action_space.shape).astype(np.float32))
        obs, reward, *_ = env.step(actions if torch.is_tensor(obs["latent"]) else actions.numpy())
        total += gamma**k * np.asarray(reward, dtype=float)
    return total, first


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    gamma=st.sampled_from([1.0, 0.9, 0.5]),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    backend=st.sampled_from(["numpy", "torch"]),
)
def test_the_terms_telescope(seed, gamma, lengths, backend):
    bare = FakeDenoiseEnv(steps=lengths, backend=backend, reward=1.5)
    shaped = PotentialShaping(FakeDenoiseEnv(steps=lengths, backend=backend, reward=1.5), potential, gamma)
    expected, first = returns(bare, gamma, seed, max(lengths))
    got, _ = returns(shaped, gamma, seed, max(lengths))
    assert np.allclose(got, expected - first, atol=1e-4)


def test_single_steps_carry_the_difference():
    env = PotentialShaping(FakeDenoiseEnv(steps=(3,)), potential, gamma=0.5)
    obs, _ = env.reset(seed=1)
    before = potential(obs)
    obs, reward, *_ = env.step(obs["latent"] * 0.3)
    assert np.allclose(reward, 0.5 * potential(obs) - before, atol=1e-5)
    assert reward.dtype == np.float32 and abs(reward[0]) > 0.1


def test_an_automatic_reset_pays_nothing():
    env = PotentialShaping(FakeDenoiseEnv(steps=(2,), autoreset="next_step"), potential)
    obs, _ = env.reset(seed=1)
    totals, total = [], 0.0
    starts = [float(potential(obs)[0])]
    for _ in range(6):
        obs, reward, terminated, _, _ = env.step(obs["latent"] * 0.3)
        total += float(reward[0])
        if obs["sigma"][0] == 1:
            assert reward[0] == 0
            starts.append(float(potential(obs)[0]))
        if terminated[0]:
            totals.append(total)
            total = 0.0
    assert np.allclose(totals, [-start for start in starts[:2]], atol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 1.1, -1.0])
def test_a_discount_out_of_range_is_refused(gamma):
    with pytest.raises(ConfigError, match=r"`gamma` must be in \(0, 1\]"):
        PotentialShaping(FakeDenoiseEnv(), potential, gamma)


def test_a_potential_must_be_a_finite_number_per_row():
    with pytest.raises(ConfigError, match="`potential` must be callable, got float"):
        PotentialShaping(FakeDenoiseEnv(), 1.0)
    with pytest.raises(ContractError, match=r"must give 2 finite numbers, got shape \[2, 2, 4, 4\]"):
        PotentialShaping(FakeDenoiseEnv(), lambda obs: obs["latent"]).reset(seed=0)
    with pytest.raises(ContractError, match="with 2 that are not finite"):
        PotentialShaping(FakeDenoiseEnv(), lambda obs: obs["sigma"] * np.nan).reset(seed=0)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_gymnasiums_own_wrappers_scale_and_clip(backend):
    env = FakeDenoiseEnv(backend=backend, reward=2.0)
    assert walk(ClipReward(env, -1.0, 0.5))[-1][1].tolist() == [0.5, 0.5]
    assert walk(TransformReward(env, lambda reward: 3 * reward))[-1][1].tolist() == [6.0, 6.0]
