import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from worlds import PlainDenoiser, brightness, world

from unirl_env.envs import SingleEnv
from unirl_env.errors import ConfigError, PromptError, ShapeError
from unirl_env.types import Prompt
from unirl_env.worlds import make_env
from unirl_env.worlds.ids import IDS


@pytest.fixture(params=sorted(IDS))
def env(request, offline):
    mode = "ansi" if "language_model" in IDS[request.param] else "rgb_array"
    made = gym.make(request.param, render_mode=mode, **offline(request.param))
    yield made
    made.close()


def test_gymnasium_accepts_it(env):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Latents are unbounded, and the bounds of the actions are far from 1: both are what they are.
        warnings.filterwarnings("ignore", message=".*(infinity|symmetric and normalized).*")
        check_env(env.unwrapped)


def test_stable_baselines_accepts_it(env):
    sb3_check_env(env.unwrapped, warn=False)


def test_an_episode(env):
    obs, info = env.reset(seed=3)
    env.action_space.seed(3)
    assert env.observation_space.contains(obs)
    assert isinstance(info["prompt"], str) and isinstance(info["episode_seed"], int)
    over = False
    while not over:
        moves = "latent" in obs and "phase" not in obs
        action = obs["latent"] * np.float32(0.9) if moves else env.action_space.sample()
        obs, reward, terminated, truncated, info = env.step(action)
        assert env.observation_space.contains(obs)
        assert type(reward) is float and type(terminated) is type(truncated) is bool
        over = terminated or truncated
        assert over == ("sample" in info) == ("scores" in info)
    assert reward == info["scores"]["value"] and np.isfinite(reward)
    assert all(isinstance(value, np.ndarray | str | int) for value in info["sample"].values())
    picture = env.render()
    assert isinstance(picture, str) or (picture.dtype == np.uint8 and picture.shape[-1] == 3)


def test_the_steps_are_counted():
    env = SingleEnv(world(num_envs=1, autoreset_mode="disabled"))
    obs, _ = env.reset(seed=3)
    assert obs["sigma"].shape == (1,)
    for k in range(3):
        obs, _, terminated, truncated, _ = env.step(obs["latent"])
        assert obs["step"].tolist() == [k + 1] and terminated == (k == 2) and not truncated


def test_it_is_the_vector_environment_of_one():
    single = SingleEnv(world(num_envs=1, scored=True, autoreset_mode="disabled"))
    batch = world(num_envs=1, scored=True, autoreset_mode="disabled")
    one, _ = single.reset(seed=4)
    many, _ = batch.reset(seed=4)
    for _ in range(3):
        assert all(np.array_equal(one[name], np.atleast_1d(many[name][0])) for name in many)
        one, reward, *_ = single.step(one["latent"] * 0.5)
        many, rewards, *_ = batch.step(many["latent"] * 0.5)
        assert reward == rewards[0]


def test_one_prompt_can_be_asked_for():
    env = SingleEnv(world(num_envs=1))
    _, info = env.reset(options={"prompt": "a boat"})
    assert info["prompt"].text == "a boat"
    _, info = env.reset(options={"prompt": Prompt("a bird", id="7", metadata={"wings": 2})})
    assert info["prompt"].metadata == {"wings": 2}
    with pytest.raises(PromptError):
        env.reset(options={"prompt": ""})
    with pytest.raises(ConfigError, match="either"):
        env.reset(options={"prompt": "a", "prompts": ["b"]})


def test_a_seed_gives_the_same_episode_and_the_next_differs():
    env = SingleEnv(world(num_envs=1))
    first = env.reset(seed=1)[1]["episode_seed"]
    assert env.reset()[1]["episode_seed"] != first == env.reset(seed=1)[1]["episode_seed"]


def test_an_action_of_another_shape_is_refused():
    env = SingleEnv(world(num_envs=1))
    env.reset(seed=0)
    with pytest.raises(ShapeError, match=r"next latents \[1, 3, 4, 4\]"):
        env.step(np.zeros((3, 4), np.float32))


def test_the_reward_of_a_failed_score_is_nan_and_told():
    def broken(samples, prompts):
        raise RuntimeError("no")

    env = make_env(denoiser=PlainDenoiser(), scorer=broken, num_steps=1, prompts=["a cat"], on_invalid="nan")
    obs, _ = env.reset(seed=0)
    _, reward, terminated, _, info = env.step(obs["latent"])
    assert terminated and np.isnan(reward) and info["scores"] == {"valid": False}


@pytest.mark.parametrize(
    "argument",
    [{"array_backend": "torch"}, {"group_size": 4}, {"autoreset_mode": "next_step"}, {"num_envs": 2}],
)
def test_what_one_episode_cannot_be_is_refused(argument):
    with pytest.raises(ConfigError, match=f"`{next(iter(argument))}`"):
        make_env(denoiser=PlainDenoiser(), prompts=["a cat"], scorer=brightness, **argument)


def test_the_vector_environment_must_be_one_episode():
    for options in ({"num_envs": 2}, {"num_envs": 1, "array_backend": "torch"}):
        with pytest.raises(ConfigError, match="one episode"):
            SingleEnv(world(**options))


def test_off_the_shelf_wrappers_and_vectorisation():
    def make():
        return gym.wrappers.RecordEpisodeStatistics(SingleEnv(world(num_envs=1, autoreset_mode="disabled")))

    env = gym.vector.SyncVectorEnv([make, make])
    obs, info = env.reset(seed=[1, 2])
    for _ in range(3):
        obs, _, terminated, _, info = env.step(obs["latent"] * np.float32(0.5))
    assert terminated.all() and info["episode"]["l"].tolist() == [3, 3]
