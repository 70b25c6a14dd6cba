"""What Z-Image alone has, on an untrained tiny checkpoint."""

from dataclasses import replace

import pytest
import torch
from models import family_checks as checks
from models.z_image_cases import LONG, TEXTS, Z_IMAGE

from unirl_env.errors import ConfigError, ModelNotFound
from unirl_env.models.shared import of_diffusers
from unirl_env.policies.actor import Actor
from unirl_env.types import Prompt


@pytest.fixture(scope="module")
def folder(checkpoint):
    return checkpoint(Z_IMAGE)


@pytest.mark.parametrize("setting", [{"cfg_normalization": 0.9}, {"cfg_truncation": 0.4}])
def test_it_draws_them_with_guidance_that_is_bounded_or_ends(folder, setting):
    family = replace(
        Z_IMAGE,
        options={**Z_IMAGE.options, **setting},
        call=lambda *asked: {**Z_IMAGE.call(*asked), **setting},
    )
    for num_steps in (4, 12):  # of 12 one is at the very time
        checks.equals_the_pipeline(family, folder, guidance=3.5, num_steps=num_steps)
    denoiser, plain = family.denoiser(folder), Z_IMAGE.denoiser(folder)
    without, with_prompt = torch.randn(2, 3, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    asked = (without, with_prompt, 3.5, torch.tensor([0.2, 0.5, 0.9]))
    assert (denoiser.guided(*asked) - plain.guided(*asked)).abs().max() > 0.1, "the setting must matter"


def test_in_lots_no_bit_depends_on_the_captions_beside_it(folder, monkeypatch):
    denoiser = Z_IMAGE.denoiser(folder, rows_per_forward=2)
    seen, own_forward = [], denoiser._forward

    def forward(network, latent, sigma, context):
        seen.append(((context["prompt_embeds_length"] + 31) // 32).tolist())
        return own_forward(network, latent, sigma, context)

    monkeypatch.setattr(denoiser, "_forward", forward)
    network, context = denoiser.network(), denoiser.encode(TEXTS)
    assert ((context["prompt_embeds_length"] + 31) // 32).tolist() == [1, 1, 2, 1]
    latent = torch.randn(4, *denoiser.latent_shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.linspace(0.9, 0.3, 4)
    with torch.no_grad():
        together = denoiser.velocity(network, latent, sigma, context)
        assert seen == [[1, 1], [1, 1], [2, 2]], "captions of other lengths would change how rows are padded"
        for row in range(4):
            own = {name: each[row : row + 1] for name, each in context.items()}
            alone = denoiser.velocity(network, latent[row : row + 1], sigma[row : row + 1], own)
            assert torch.equal(alone, together[row : row + 1])
        plain = Z_IMAGE.denoiser(folder).velocity(network, latent, sigma, context)
    assert (plain - together).abs().max() < 1e-4


def test_a_captions_context_is_the_pipelines_and_zeros(folder):
    denoiser, pipeline = Z_IMAGE.denoiser(folder), Z_IMAGE.load(folder)
    context = denoiser.encode(TEXTS)
    with torch.no_grad():
        found, _ = pipeline.encode_prompt([p.text for p in TEXTS], "cpu", False, max_sequence_length=64)
    for row, each in enumerate(found):
        count = len(each)
        assert context["prompt_embeds_length"][row] == count
        torch.testing.assert_close(context["prompt_embeds"][row, :count], each, atol=1e-6, rtol=1e-5)
        assert not context["prompt_embeds"][row, count:].any()


def test_a_text_that_is_cut_is_cut_as_by_the_pipeline_and_said(folder, caplog, monkeypatch):
    monkeypatch.setattr(of_diffusers, "_told", set())
    length = {"max_sequence_length": 40}
    short = replace(Z_IMAGE, options=length, call=lambda *asked: {**Z_IMAGE.call(*asked), **length})
    checks.equals_the_pipeline(short, folder, guidance=1.0)
    assert "do not read every prompt to its end" in caplog.text


class TestRefusals:
    @pytest.mark.parametrize("size, near", [({"height": 30}, "24 or 32"), ({"width": 400}, "256")])
    def test_sizes(self, folder, size, near):
        with pytest.raises(ConfigError, match=f"`{next(iter(size))}` must be .* multiple of 8.*{near}"):
            Z_IMAGE.denoiser(folder, **size)

    def test_captions_that_leave_no_place_for_the_picture(self, folder):
        with pytest.raises(ConfigError, match="`max_sequence_length` must be at most 96, got 97"):
            Z_IMAGE.denoiser(folder, max_sequence_length=97)
        denoiser = Z_IMAGE.denoiser(folder, max_sequence_length=96)
        context = denoiser.encode([Prompt(LONG * 2)])
        assert context["prompt_embeds_length"].tolist() == [96]
        latent = torch.zeros(1, *denoiser.latent_shape)
        with torch.no_grad():
            denoiser.velocity(denoiser.network(), latent, torch.ones(1), context)

    def test_another_familys_network_and_pipeline(self, folder, tmp_path):
        file, kind = "transformer/config.json", "FluxTransformer2DModel"
        other = checks.edited_copy(folder, tmp_path / "flux", file, _class_name=kind)
        with pytest.raises(ModelNotFound, match=f"transformer is a {kind}, not a ZImageTransformer2DModel"):
            Z_IMAGE.denoiser(other)
        other = checks.edited_copy(
            folder, tmp_path / "omni", "model_index.json", _class_name="ZImageOmniPipeline"
        )
        with pytest.raises(ModelNotFound, match=r"model_index\.json is of ZImageOmniPipeline"):
            Z_IMAGE.denoiser(other)

    @pytest.mark.parametrize("setting", [{"invert_sigmas": True}, {"shift_wildly": 3.0}])
    def test_settings_of_the_scheduler(self, folder, tmp_path, setting):
        other = checks.edited_copy(
            folder, tmp_path / "scheduler", "scheduler/scheduler_config.json", **setting
        )
        with pytest.raises(ConfigError, match=f"`{next(iter(setting))}`"):
            Z_IMAGE.denoiser(other)

    def test_guidance_that_is_no_number(self, folder):
        with pytest.raises(ConfigError, match="`cfg_normalization`"):
            Z_IMAGE.denoiser(folder, cfg_normalization="much")


def test_in_bfloat16_it_is_the_pipelines_to_rounding(folder):
    """Whose latents stay in float32."""
    denoiser, pipeline = (
        Z_IMAGE.denoiser(folder, dtype="bfloat16"),
        Z_IMAGE.load(folder, dtype=torch.bfloat16),
    )
    start, _, pictures = Z_IMAGE.drawn(denoiser, Actor(denoiser, guidance=3.5), 3, list(TEXTS))
    expected = Z_IMAGE.by_pipeline(pipeline, denoiser, start, 3.5, 3, list(TEXTS))
    assert (pictures - expected.float()).abs().max() <= 0.05
