"""Flat views: nothing is lost, and the vector and the single form agree."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from fakes import SHAPE, FakeDenoiseEnv
from gymnasium.vector.utils import batch_space

from unirl_env.errors import ConfigError
from unirl_env.wrappers import FlattenForPPO, flatten_for_ppo


class Single(gym.Env):
    """One copy of the fake, unbatched."""

    def __init__(self):
        self.inner = FakeDenoiseEnv(steps=(2,))
        self.observation_space = self.inner.single_observation_space
        self.action_space = self.inner.single_action_space

    def reset(self, *, seed=None, options=None):
        obs, _ = self.inner.reset(seed=seed)
        return {name: value[0] for name, value in obs.items()}, {}

    def step(self, action):
        obs, reward, terminated, truncated, _ = self.inner.step(action[None])
        row = {name: value[0] for name, value in obs.items()}
        return row, float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_the_flat_view_holds_the_chosen_entries(backend):
    env = FlattenForPPO(FakeDenoiseEnv(steps=(2, 2), backend=backend), keys=("sigma", "latent"))
    obs, _ = env.reset(seed=0)
    assert obs.shape == (2, 33) and env.observation_space.shape == (2, 33)
    assert env.observation_space == batch_space(env.single_observation_space, 2)
    assert isinstance(obs, torch.Tensor) == (backend == "torch")
    assert np.asarray(obs[:, 32]).tolist() == [1.0, 1.0]
    if backend == "numpy":
        assert env.observation_space.contains(obs)
    assert np.array_equal(np.asarray(obs[:, :32]), env.unwrapped.latent.reshape(2, -1))


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_flat_actions_arrive_in_shape(backend):
    env = FlattenForPPO(FakeDenoiseEnv(steps=(2, 2), backend=backend))
    env.reset(seed=0)
    action = np.arange(64, dtype=np.float32).reshape(2, 32) / 10
    obs, *_ = env.step(torch.from_numpy(action) if backend == "torch" else action)
    assert np.array_equal(env.unwrapped.latent, action.reshape(2, *SHAPE))
    assert np.array_equal(np.asarray(obs[:, :32]), action)
    assert env.single_action_space.shape == (32,) and env.action_space.shape == (2, 32)


def test_the_single_form_agrees_with_the_vector_form():
    vector, single = FlattenForPPO(FakeDenoiseEnv(steps=(2,))), flatten_for_ppo(Single())
    assert single.observation_space == vector.single_observation_space
    assert single.action_space == vector.single_action_space
    a, b = vector.reset(seed=3)[0], single.reset(seed=3)[0]
    assert np.array_equal(a[0], b)
    action = single.action_space.sample()
    left, right = vector.step(action[None]), single.step(action)
    assert np.array_equal(left[0][0], right[0])


@pytest.mark.parametrize("keys", [("latent", "nothing"), (), "latent"])
def test_entries_that_are_not_there_are_refused(keys):
    with pytest.raises(ConfigError, match="`keys` must"):
        FlattenForPPO(FakeDenoiseEnv(), keys)
    with pytest.raises(ConfigError, match="`keys` must"):
        flatten_for_ppo(Single(), keys)


def test_token_actions_are_refused():
    env = FakeDenoiseEnv()
    env.single_action_space = gym.spaces.Discrete(7)
    with pytest.raises(ConfigError, match=r"must be a Box to be flattened, got Discrete\(7\)"):
        FlattenForPPO(env)


def test_unmodified_ppo_trains_on_the_flat_view():
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.env_checker import check_env

    check_env(flatten_for_ppo(Single()), warn=False)
    agent = sb3.PPO("MlpPolicy", flatten_for_ppo(Single()), n_steps=16, batch_size=8, device="cpu", seed=0)
    before = [parameter.clone() for parameter in agent.policy.parameters()]
    agent.learn(32)
    assert any(not torch.equal(a, b) for a, b in zip(before, agent.policy.parameters(), strict=True))
