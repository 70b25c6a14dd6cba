"""Flat views: nothing is lost, and the vector and the single form agree."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from fakes import SHAPE, FakeDenoiseEnv
from gymnasium.vector.utils import batch_space

import unirl_env  # noqa: F401  # registers the ids
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


class Observed(FakeDenoiseEnv):
    """Entries of other kinds and sizes, for the choice among them."""

    def __init__(self, action=None, **boxes):
        super().__init__()
        boxes = {name: gym.spaces.Box(-1, 1, shape, np.float32) for name, shape in boxes.items()}
        self.single_observation_space = gym.spaces.Dict(boxes)
        self.single_action_space = action or self.single_action_space


LATENT = {"latent": (2, 4, 4), "sigma": (), "sigma_next": (), "step": (), "stochastic": ()}


@pytest.mark.parametrize(
    ("boxes", "seen"),
    [
        (LATENT, ["latent", "sigma"]),
        (
            {**LATENT, "pooled": (8,), "prompt": (8, 16)},
            ["latent", "pooled", "prompt", "sigma"],
        ),
        ({"tokens": (9,), "length": (), "prompt_length": (), "is_action": (9,)}, ["length", "tokens"]),
        ({"tokens": (9000,), "length": (), "pixel_values": (4, 5)}, ["length", "pixel_values", "tokens"]),
    ],
    ids=["no prompt", "denoiser", "texts", "long texts with pictures"],
)
def test_a_policy_sees_the_prompt(boxes, seen, caplog):
    action = gym.spaces.Discrete(5) if "tokens" in boxes else None
    assert FlattenForPPO(Observed(action, **boxes)).keys == seen
    assert not caplog.text


def test_what_is_too_large_is_left_out_with_a_word_unless_it_is_named(caplog):
    boxes = {**LATENT, "pooled": (8,), "prompt_embeds": (77, 4096)}
    assert FlattenForPPO(Observed(**boxes)).keys == ["latent", "pooled", "sigma"]
    assert "leaves out prompt_embeds (77, 4096)" in caplog.text
    assert FlattenForPPO(Observed(**boxes), ["latent", "prompt_embeds"]).keys == ["latent", "prompt_embeds"]


def test_a_policy_that_would_see_no_prompt_is_refused():
    boxes = {**LATENT, "prompt_embeds": (77, 4096)}
    with pytest.raises(ConfigError, match=r"must show the agent the prompt.*try `flat=\['latent', 'pro"):
        FlattenForPPO(Observed(**boxes))
    assert FlattenForPPO(Observed(**boxes), ["latent", "sigma"]).keys == ["latent", "sigma"]


def test_tokens_stay_actions_of_their_own():
    name, options = "unirl/TinyQwen3-Math-v0", {"flat": True, "prompts": ["1+1=", "2+3="], "scorer": None}
    vector = gym.make_vec(name, 2, vectorization_mode="vector_entry_point", **options)
    row, info = vector.reset(seed=0)
    assert vector.single_action_space == gym.spaces.Discrete(268) and row.shape == (2, 41)
    assert vector.observation_space.contains(row) and not np.array_equal(row[0], row[1])
    after, *_ = vector.step(np.array([5, 6]))
    length = int(row[0, 0])
    assert after[:, 0].tolist() == (row[:, 0] + 1).tolist() and after[0, 1 + length] == 5
    single = gym.make(name, flat=True, prompts=[info["prompt"][0]], scorer=None)
    assert single.observation_space == vector.single_observation_space
    assert np.array_equal(single.reset(seed=0)[0], row[0])


def test_actions_of_other_kinds_are_refused():
    with pytest.raises(ConfigError, match=r"must be a Box or Discrete to be flattened, got MultiBinary"):
        FlattenForPPO(Observed(gym.spaces.MultiBinary(3), **LATENT))


def test_unmodified_ppo_trains_on_the_flat_view():
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.env_checker import check_env

    check_env(flatten_for_ppo(Single()), warn=False)
    agent = sb3.PPO("MlpPolicy", flatten_for_ppo(Single()), n_steps=16, batch_size=8, device="cpu", seed=0)
    before = [parameter.clone() for parameter in agent.policy.parameters()]
    agent.learn(32)
    assert any(not torch.equal(a, b) for a, b in zip(before, agent.policy.parameters(), strict=True))
