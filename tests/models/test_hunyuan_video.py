"""What HunyuanVideo 1.0 alone has, on a tiny checkpoint."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from models import family_checks as checks
from models.family_checks import edited_copy as edited
from models.hunyuan_video_cases import HUNYUAN_VIDEO as FAMILY
from models.hunyuan_video_cases import build, call

from unirl_env.errors import ConfigError, ModelNotFound


@pytest.fixture(scope="module")
def folder(checkpoint):
    return checkpoint(FAMILY)


def test_the_network_is_told_another_guidance(folder):
    told = replace(FAMILY, call=partial(call, told=2.5), options={**FAMILY.options, "embedded_guidance": 2.5})
    checks.equals_the_pipeline(told, folder, guidance=1.0, num_steps=3)
    latent = torch.randn(1, *FAMILY.denoiser(folder).latent_shape, generator=torch.Generator().manual_seed(0))
    found = []
    for family in (FAMILY, told):
        denoiser = family.denoiser(folder)
        with torch.no_grad():
            context = denoiser.encode(family.prompts[:1])
            found.append(denoiser.velocity(denoiser.network(), latent, torch.ones(1), context))
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_texts_begin_behind_the_template(folder):
    denoiser = FAMILY.denoiser(folder)
    tokens, text = denoiser.frozen.tokenizer, FAMILY.prompts[0].text
    mask = denoiser.encode(FAMILY.prompts[:1])["prompt_attention_mask"]
    assert int(mask.sum()) >= len(tokens(text).input_ids), "the tiny tokenizer must not lose a text"


def test_a_network_without_guidance_among_its_inputs_is_told_none(tmp_path, quiet_models):
    build(tmp_path / "plain", guidance_embeds=False)
    checks.equals_the_pipeline(FAMILY, tmp_path / "plain", guidance=3.5, num_steps=3)
    with pytest.raises(ConfigError, match=r"`embedded_guidance` must be left out, got 6.0: .* is told none"):
        FAMILY.denoiser(tmp_path / "plain", embedded_guidance=6.0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_frames": 8}, "one more than a multiple of 4, got 8; try 5 or 9"),
        ({"height": 40}, "`height` must be a positive multiple of 16, got 40; try 32 or 48"),
        ({"embedded_guidance": "much"}, "`embedded_guidance` must be"),
    ],
)
def test_what_it_cannot_film_is_refused(folder, options, told):
    with pytest.raises(ConfigError, match=told):
        FAMILY.denoiser(folder, **options)


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("scheduler/scheduler_config.json", {"invert_sigmas": True}, "`invert_sigmas`"),
        (
            "transformer/config.json",
            {"patch_size_t": 2},
            "`patch_size_t` of the transformer must be 1 .*got 2",
        ),
        (
            "transformer/config.json",
            {"image_condition_type": "token_replace"},
            "must be None .*token_replace",
        ),
    ],
)
def test_settings_are_honoured_or_refused(folder, tmp_path, file, change, told):
    with pytest.raises(ConfigError, match=told):
        FAMILY.denoiser(edited(folder, tmp_path / "changed", file, **change))


def test_another_familys_checkpoint_is_refused(folder, tmp_path):
    kind = "HunyuanVideoImageToVideoPipeline"
    other = edited(folder, tmp_path / "other", "model_index.json", _class_name=kind)
    with pytest.raises(ModelNotFound, match=kind):
        FAMILY.denoiser(other)
