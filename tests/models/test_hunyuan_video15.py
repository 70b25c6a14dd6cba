"""What HunyuanVideo 1.5 from text alone has, on a tiny checkpoint."""

import pytest
import torch
from models.family_checks import edited_copy as edited
from models.hunyuan_video15_cases import HUNYUAN_VIDEO15 as FAMILY

from unirl_env.errors import ConfigError, ModelNotFound
from unirl_env.models.shared import of_diffusers


@pytest.fixture(scope="module")
def folder(checkpoint):
    return checkpoint(FAMILY)


def test_texts_in_quotes_are_read_by_another_encoder(folder):
    context = FAMILY.denoiser(folder).encode(FAMILY.prompts)
    assert context["prompt_embeds_mask_2"].sum(1).tolist() == [0, len('Text "no entry". ') + 1, 0]
    assert context["prompt_embeds_2"][[0, 2]].abs().max() == 0


def test_texts_begin_where_the_pipelines_instruction_ends(folder):
    denoiser = FAMILY.denoiser(folder)
    tokens, prompt = denoiser.frozen.tokenizer, FAMILY.prompts[1].text
    behind = len(tokens("<|im_end|>\n<|im_start|>assistant\n").input_ids)
    mask = denoiser.encode(FAMILY.prompts[1:2])["prompt_embeds_mask"]
    assert int(mask.sum()) == len(tokens(prompt).input_ids) + behind


def test_what_is_longer_than_it_reads_is_said(folder, caplog, monkeypatch):
    monkeypatch.setattr(of_diffusers, "_told", set())
    denoiser = FAMILY.denoiser(folder, max_sequence_length=8)
    assert denoiser.encode(FAMILY.prompts[:1])["prompt_embeds"].shape[1] == 8
    assert "do not read every prompt to its end" in caplog.text


def test_tiles_are_the_pipelines(folder):
    """Of 256 pixels, in which it decodes unless it is told otherwise."""
    size = {"height": 16, "width": 272, "num_frames": 3}
    pipeline, by_default = FAMILY.load(folder), FAMILY.denoiser(folder, **size)
    in_one = FAMILY.denoiser(folder, **size, tiling=False)
    latents = torch.randn(2, *by_default.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = torch.cat([pipeline.vae.decode(row / 1.3).sample for row in latents.split(1)])
        pipeline.vae.enable_tiling()
        tiled = torch.cat([pipeline.vae.decode(row / 1.3).sample for row in latents.split(1)])
        assert torch.equal(by_default._draw(by_default.frozen.vae, latents), tiled)
        assert torch.equal(in_one._draw(in_one.frozen.vae, latents), whole)
    assert (whole - tiled).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_frames": 4}, "one more than a multiple of 2, got 4; try 3 or 5"),
        ({"height": 18}, "`height` must be a positive multiple of 4, got 18; try 16 or 20"),
        ({"max_sequence_length": 0}, "`max_sequence_length`"),
    ],
)
def test_what_it_cannot_film_is_refused(folder, options, told):
    with pytest.raises(ConfigError, match=told):
        FAMILY.denoiser(folder, **options)


@pytest.mark.parametrize("change", [{"use_meanflow": True}, {"in_channels": 8}, {"patch_size_t": 2}])
def test_networks_that_need_more_than_a_text_are_refused(folder, tmp_path, change):
    other = edited(folder, tmp_path / "other", "transformer/config.json", **change)
    with pytest.raises(ConfigError, match=f"`{next(iter(change))}` of the transformer must be .*480p_t2v"):
        FAMILY.denoiser(other)


def test_a_guider_that_guides_otherwise_is_refused_where_guidance_is_asked_for(folder, tmp_path):
    file = "guider/guider_config.json"
    denoiser = FAMILY.denoiser(edited(folder, tmp_path / "rescaled", file, guidance_rescale=0.7))
    denoiser.check_guidance(1.0)
    with pytest.raises(ConfigError, match=r"`guidance` must be 1, got 3.5: .*'guidance_rescale': 0.7"):
        denoiser.check_guidance(3.5)
    scaled = FAMILY.denoiser(edited(folder, tmp_path / "scaled", file, guidance_scale=1.0))
    scaled.check_guidance(3.5)
    kind = {"guider": ["diffusers", "AdaptiveProjectedGuidance"]}
    other = FAMILY.denoiser(edited(folder, tmp_path / "other", "model_index.json", **kind))
    with pytest.raises(ConfigError, match="its guider is a AdaptiveProjectedGuidance"):
        other.check_guidance(3.5)


def test_settings_of_the_scheduler_are_honoured_or_refused(folder, tmp_path):
    file = "scheduler/scheduler_config.json"
    with pytest.raises(ConfigError, match="`invert_sigmas`"):
        FAMILY.denoiser(edited(folder, tmp_path / "changed", file, invert_sigmas=True))


def test_another_familys_checkpoint_is_refused(folder, tmp_path):
    kind = "HunyuanVideo15ImageToVideoPipeline"
    other = edited(folder, tmp_path / "other", "model_index.json", _class_name=kind)
    with pytest.raises(ModelNotFound, match=kind):
        FAMILY.denoiser(other)
