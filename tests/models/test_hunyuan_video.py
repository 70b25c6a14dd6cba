"""HunyuanVideo 1.0 on a tiny checkpoint, against its pipeline."""

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
def folder(tmp_path_factory, quiet_models):
    folder = tmp_path_factory.mktemp("hunyuan_video")
    FAMILY.build(folder)
    return folder


@pytest.mark.parametrize("guidance", [1.0, 3.5])
@pytest.mark.parametrize("num_steps", [3, 8])
def test_it_films_the_pipelines_clips(folder, guidance, num_steps):
    checks.equals_the_pipeline(FAMILY, folder, guidance=guidance, num_steps=num_steps)


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


def test_its_latents_are_the_pipelines(folder):
    checks.its_latents_are_the_pipelines(FAMILY, folder)


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("exact", [True, False])
def test_it_agrees_with_itself(folder, lora, exact):
    checks.agrees_with_itself(FAMILY, folder, lora=lora, exact=exact)


def test_what_it_exports_loads(folder, tmp_path):
    checks.adapters_load_in_the_pipeline(FAMILY, folder, tmp_path / "adapters")
    checks.whole_weights_load(FAMILY, folder, tmp_path / "weights")


def test_recomputed_activations_give_the_same_gradients(folder):
    checks.recomputing_changes_nothing(FAMILY, folder)


def test_clips_of_evaluation_may_have_another_size(folder):
    checks.another_size_is_the_pipelines(FAMILY, folder, 48, 32)


def test_it_keeps_the_contract(folder):
    checks.keeps_the_contract(FAMILY, folder)


@pytest.mark.parametrize("agent", ["awm", "grpo", "flow_dppo", "drpo"])
def test_it_trains_by_its_recipe(folder, cluster, agent):
    checks.trains(FAMILY, folder, "diffusion/hunyuan_video", agent, "steps.count=3")


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
