"""Environments whose episodes leave out levels of the noise schedule."""

import pytest
import torch
from hybrid_worlds import TwoBackbones
from worlds import PROMPTS, PlainDenoiser, world

from unirl_env.envs import HybridVectorEnv, check_vector_env
from unirl_env.errors import ConfigError

LEVELS = (0, 1, 2, 3, 5, 6)


def hybrid(**options):
    shared = {"prompts": PROMPTS, "levels": LEVELS, "max_prompt_tokens": 20, "max_new_tokens": 4}
    return HybridVectorEnv(TwoBackbones(), **shared, **options)


def test_an_environment_visits_the_levels_that_it_is_given():
    env = world(num_steps=6, levels=LEVELS)
    assert torch.equal(env.sigmas, PlainDenoiser().sigmas(6)[list(LEVELS)]) and env.num_steps == 5
    obs, _ = env.reset(seed=0)
    for k in range(5):
        assert obs["sigma"].tolist() == [float(env.sigmas[k])] * 4
        assert obs["sigma_next"].tolist() == [float(env.sigmas[k + 1])] * 4
        obs, _, ended, _, _ = env.step(obs["latent"])
        assert ended.all() == (k == 4)
    check_vector_env(world(num_steps=6, levels=LEVELS, scored=True))
    check_vector_env(hybrid(num_envs=4, num_steps=6))


@pytest.mark.parametrize("levels", [(), (0,), (1, 6), (0, 5), (0, 3, 3, 6), (0, 4, 2, 6), (0, 7)])
def test_levels_that_lead_nowhere_are_refused(levels):
    with pytest.raises(ConfigError, match="`levels`"):
        world(num_steps=6, levels=levels)


def test_where_nothing_is_denoised_there_are_no_levels():
    with pytest.raises(ConfigError, match="`levels` must be None where no latents are"):
        hybrid(num_envs=1, num_steps=0)
