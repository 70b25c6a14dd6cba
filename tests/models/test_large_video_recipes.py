"""Recipes of large videos learn from finished latents, and of transitions where the agent needs them."""

import math

import pytest

from unirl_env import train
from unirl_env.run.agent_setup import agent_config
from unirl_env.run.memory import episode_memory

RECIPES = ("wan", "wan_i2v", "hunyuan_video", "hunyuan_video15", "ltx")


class Sized:
    """What a model says of its size."""

    makes, height, width, num_frames = "video", 32, 32, 9
    latent_shape = (16, 3, 4, 4)


def config_of(recipe, *words):
    config = agent_config(train.settings(f"diffusion/{recipe}", words))
    config.validate()
    return config


@pytest.mark.parametrize("recipe", RECIPES)
def test_they_keep_the_finished_latent_alone(recipe):
    config = config_of(recipe)
    assert (config.estimating, config.sampling, config.trained_steps(0)) == ("elbo", "ode", ())
    elements = math.prod(Sized.latent_shape)
    memory = episode_memory(Sized(), config)
    assert (memory.steps, memory.step, memory.final) == (1, 4 * elements, 2 * elements)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("agent", ["grpo", "flow_dppo", "drpo", "temp_flow"])
def test_whoever_needs_transitions_is_one_word(recipe, agent):
    config = config_of(recipe, f"agent={agent}")
    assert (config.estimating, config.sampling) == ("trajectory", "sde")
    assert config.trained_steps(0) and config.num_steps >= 10


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("agent", ["elbo_pg", "nft", "pg"])
def test_other_agents_are_one_word_too(recipe, agent):
    config = config_of(recipe, f"agent={agent}")
    assert config.looks_forward == (agent != "pg")
