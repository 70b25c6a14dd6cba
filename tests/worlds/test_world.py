"""Worlds from the arguments of an id."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from worlds import PlainDenoiser, brightness

from unirl_env.envs import DenoiseVectorEnv, SingleEnv
from unirl_env.errors import ConfigError, PromptError
from unirl_env.run.agent_setup import world_options
from unirl_env.settings import RunConfig
from unirl_env.worlds import make_env, make_vector_env
from unirl_env.worlds.arguments import pick_device
from unirl_env.wrappers import FlattenForPPO, RewardWrapper


def plain(**options):
    return {"denoiser": PlainDenoiser(), "prompts": ["a cat", "a dog"], "num_steps": 2, **options}


def finish(env):
    obs, _ = env.reset(seed=0)
    for _ in range(2):
        obs, reward, *_ = env.step(obs["latent"])
    return reward


def test_a_scored_world_is_the_reward_around_the_episodes():
    env = make_vector_env(2, scorer=brightness, **plain())
    assert isinstance(env, RewardWrapper) and isinstance(env.env, DenoiseVectorEnv)
    assert np.isfinite(finish(env)).all() and (finish(env) != 0).all()


def test_without_a_scorer_nothing_is_paid():
    env = make_vector_env(2, **plain())
    assert isinstance(env, DenoiseVectorEnv) and not finish(env).any()


def test_scorers_go_by_name_and_invalid_scores_as_told():
    env = make_vector_env(2, scorer="shapes", on_invalid=-1.0, **plain())
    assert finish(env).tolist() == [-1, -1], "no shapes are asked for, so nothing can be scored"
    with pytest.raises(PromptError, match="must be a caption of the shapes world"):
        make_vector_env(2, scorer="shapes", **plain())
    with pytest.raises(ConfigError, match="`reward` must be one of"):
        make_vector_env(2, scorer="beauty", **plain())


def test_a_model_goes_by_name_with_its_options():
    env = make_vector_env(2, denoiser="gaussian_mixture", model_options={"shift": 0.3}, prompts=["a"])
    assert env.denoiser.shift == 0.3
    with pytest.raises(ConfigError, match=r"'gaussian_mixture' do not fit.*patch"):
        make_vector_env(2, denoiser="gaussian_mixture", model_options={"patch": 1}, prompts=["a"])
    with pytest.raises(ConfigError, match="`denoiser` must be one of"):
        make_vector_env(2, denoiser="gaussian_mixtures", prompts=["a"])
    with pytest.raises(ConfigError, match="must name a model family, got none"):
        make_vector_env(2, prompts=["a"])


def test_an_adapter_that_passes_its_options_on_refuses_unknown_ones_too():
    with pytest.raises(ConfigError, match=r"'tiny_sd3' do not fit.*system"):
        make_vector_env(denoiser="tiny_sd3", system="be brief", prompts="shapes_train")


def test_flat_views():
    env = make_vector_env(2, flat=True, **plain())
    assert isinstance(env, FlattenForPPO) and env.single_observation_space.shape == (48 + 2 + 2 + 1,)
    single = make_env(flat=["latent"], **plain())
    assert isinstance(single.unwrapped, SingleEnv) and single.observation_space.shape == (48,)


def test_auto_is_the_device_that_is_there():
    assert pick_device("cpu") == "cpu" and pick_device("cuda:3") == "cuda:3"
    assert pick_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert str(make_vector_env(1, device="auto", **plain()).device) == pick_device("auto")


def test_the_settings_of_a_run_reach_the_world(tmp_path):
    long = "a cat " + "and a dog " * 500
    (tmp_path / "prompts.txt").write_text(long + "\n")
    cfg = RunConfig()
    cfg.model.env, cfg.model.num_steps = "unirl/GaussianMixture-v0", 3
    cfg.reward.train, cfg.reward.on_error = "linear", "raise"
    cfg.prompts.train = str(tmp_path / "prompts.txt")
    with pytest.raises(PromptError, match="at most 4000"):
        gym.make_vec(cfg.model.env, num_envs=2, **world_options(cfg))
    cfg.prompts.max_characters = 6000
    env = gym.make_vec(cfg.model.env, num_envs=2, **world_options(cfg))
    assert env.unwrapped.num_steps == 3 and env.on_invalid == "raise"
    assert env.reset(seed=0)[1]["prompt"][0] == long.strip()
