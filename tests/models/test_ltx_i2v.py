"""What LTX-Video from a picture alone has, on a tiny checkpoint."""

from dataclasses import replace

import pytest
import torch
from models import family_checks as checks
from models.family_checks import edited_copy as edited
from models.ltx_cases import CHANNELS, DECODING, NOISY, SEED, build, from_one_stream, pictured_call
from models.ltx_cases import LTX_I2V as FAMILY
from models.wan_cases import picture

from unirl_env.errors import ModelNotFound, PromptError
from unirl_env.models.shared.from_picture import FIRST
from unirl_env.types import Prompt


def noisy_call(prompts, guidance):
    """With the noise that episodes decode with."""
    return {
        **pictured_call(prompts, guidance),
        **DECODING,
        "generator": torch.Generator().manual_seed(SEED),
    }


NOISED = replace(FAMILY, call=noisy_call, prepare=from_one_stream, options={**FAMILY.options, **DECODING})


@pytest.fixture(scope="module")
def folder(checkpoint):
    return checkpoint(FAMILY)


def test_a_decoder_that_adds_noise_films_the_pipelines_clips(tmp_path):
    build(tmp_path, **NOISY)
    checks.equals_the_pipeline(NOISED, tmp_path, guidance=3.5, num_steps=3)


def test_a_checkpoint_of_the_picture_pipeline_is_the_same(folder, tmp_path):
    named = edited(folder, tmp_path / "named", "model_index.json", _class_name=FAMILY.pipeline)
    assert FAMILY.denoiser(named).latent_shape == FAMILY.denoiser(folder).latent_shape


def test_its_shift_counts_the_pictures_places_too(folder):
    """As in the pipeline, whose network reads them."""
    denoiser = FAMILY.denoiser(folder, height=480, width=704, num_frames=161)
    assert denoiser.num_tokens == 21 * 15 * 22 and denoiser.latent_shape == (20 * 15 * 22, CHANNELS)


def test_a_pictures_latent_is_one_draw_and_leaves_torchs_stream_alone(folder):
    denoiser = FAMILY.denoiser(folder)
    first = denoiser.encode(FAMILY.prompts)[FIRST]
    before = torch.random.get_rng_state()
    for row, prompt in enumerate(FAMILY.prompts):
        assert torch.equal(denoiser.encode([prompt])[FIRST][0], first[row])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("count", [0, 2])
def test_a_prompt_without_one_picture_is_refused(folder, count):
    prompt = Prompt("a red circle", images=tuple(picture(seed, 32, 48) for seed in range(count)))
    with pytest.raises(PromptError, match=f"must bring one picture to begin with, got {count} in"):
        FAMILY.denoiser(folder).encode([prompt])


@pytest.mark.parametrize("kind", ["LTXConditionPipeline", "LTX2ImageToVideoPipeline"])
def test_another_familys_checkpoint_is_refused(folder, tmp_path, kind):
    other = edited(folder, tmp_path / "other", "model_index.json", _class_name=kind)
    with pytest.raises(ModelNotFound, match=kind):
        FAMILY.denoiser(other)
