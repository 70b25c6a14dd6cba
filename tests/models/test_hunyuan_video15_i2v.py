"""What HunyuanVideo 1.5 from a picture alone has, on a tiny checkpoint."""

from dataclasses import replace

import gymnasium as gym
import pytest
import torch
from models import family_checks as checks
from models.family_checks import edited_copy as edited
from models.hunyuan_video15_i2v_cases import HUNYUAN_VIDEO15_I2V as FAMILY
from models.hunyuan_video15_i2v_cases import picture

from unirl_env.errors import ConfigError, ModelNotFound, PromptError


@pytest.fixture(scope="module")
def folder(checkpoint):
    return checkpoint(FAMILY)


def test_clips_of_evaluation_may_have_another_size(folder):
    tall = [replace(each, images=(picture(7, 48, 32),)) for each in FAMILY.prompts]
    checks.another_size_is_the_pipelines(replace(FAMILY, prompts=tuple(tall)), folder, 24, 16)


def test_the_picture_matters_as_a_latent_and_as_what_is_seen_in_it(folder):
    denoiser, prompt = FAMILY.denoiser(folder), FAMILY.prompts[0]
    context = denoiser.encode([prompt, replace(prompt, images=(picture(9, 16, 24),))])
    latent = torch.randn(1, *denoiser.latent_shape, generator=torch.Generator().manual_seed(0))
    latent, network = latent.expand(2, -1, -1, -1, -1), denoiser.network()
    for name in ("image_latents", "image_embeds"):
        same = {**context, name: context[name][:1].expand(2, *context[name].shape[1:])}
        with torch.no_grad():
            one, other = denoiser.velocity(network, latent, torch.full((2,), 0.8), same)
        assert (one - other).abs().max() > 1e-4, name


@pytest.mark.parametrize("count", [0, 2])
def test_prompts_without_a_picture_or_with_too_many_are_refused(folder, count):
    wrong = replace(FAMILY.prompts[0], id="wrong one", images=(picture(0, 16, 24),) * count)
    arguments = {**FAMILY.arguments(folder), "prompts": [FAMILY.prompts[1], wrong]}
    with pytest.raises(PromptError, match=f"must bring one picture .* got {count} in 'wrong one'; try"):
        gym.make_vec(FAMILY.id, num_envs=1, **arguments)


def test_networks_that_need_more_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"`use_meanflow` of the transformer must be False .*480p_i2v"):
        FAMILY.denoiser(edited(folder, tmp_path / "other", "transformer/config.json", use_meanflow=True))


def test_a_checkpoint_that_films_texts_is_refused(folder, tmp_path):
    other = edited(folder, tmp_path / "other", "model_index.json", _class_name="HunyuanVideo15Pipeline")
    with pytest.raises(
        ModelNotFound, match="is of HunyuanVideo15Pipeline, not of HunyuanVideo15ImageToVideo"
    ):
        FAMILY.denoiser(other)
