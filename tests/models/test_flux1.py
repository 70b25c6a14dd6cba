"""What FLUX.1 dev and schnell alone have, on tiny checkpoints."""

import shutil

import pytest
import torch
from models import family_checks as checks
from models.flux1_cases import DEV, LENGTH, SCHNELL

from unirl_env.errors import ConfigError, ModelNotFound
from unirl_env.models.flux1 import Flux1Denoiser
from unirl_env.policies.actor import Actor
from unirl_env.types import Prompt

FAMILIES = {"dev": DEV, "schnell": SCHNELL}


@pytest.fixture(scope="module")
def folders(checkpoint):
    """By name, where the tiny checkpoint is."""
    return {name: checkpoint(family) for name, family in FAMILIES.items()}


def test_the_shift_is_the_checkpoints(folders):
    """That of dev depends on the picture's size, schnell has none."""
    checks.equals_the_pipeline(DEV, folders["dev"], guidance=1.0, height=24, width=8)
    small, large = (DEV.denoiser(folders["dev"], height=side).sigmas(4) for side in (8, 64))
    assert not torch.allclose(small, large)
    assert torch.equal(SCHNELL.denoiser(folders["schnell"]).sigmas(4), torch.linspace(1, 0, 5))


def test_contexts_are_the_pipelines_own(folders):
    denoiser, pipeline = DEV.denoiser(folders["dev"]), DEV.load(folders["dev"])
    with torch.no_grad():
        embeds, pooled, _ = pipeline.encode_prompt(
            [prompt.text for prompt in DEV.prompts], max_sequence_length=LENGTH
        )
    found = denoiser.encode(list(DEV.prompts))
    assert torch.equal(found["prompt_embeds"], embeds) and embeds.shape[1] == LENGTH
    assert torch.equal(found["pooled_prompt_embeds"], pooled)
    assert set(found) == {"prompt_embeds", "pooled_prompt_embeds"}


def test_a_text_that_is_cut_is_told(folders, tmp_path, caplog):
    shutil.copytree(folders["dev"], tmp_path / "told")  # each checkpoint is told once
    denoiser = DEV.denoiser(tmp_path / "told")
    denoiser.encode([Prompt("a red circle")])
    assert "do not read every prompt to its end" not in caplog.text
    denoiser.encode([Prompt("a red circle and " * 20)])
    assert "do not read every prompt to its end" in caplog.text


class TestEmbeddedGuidance:
    def test_it_is_an_input_beside_guidance(self, folders):
        assert Flux1Denoiser(str(folders["dev"])).embedded_guidance == 3.5
        pictures = []
        for told in (2.5, 3.5):
            denoiser = DEV.denoiser(folders["dev"], embedded_guidance=told)
            pictures.append(DEV.drawn(denoiser, Actor(denoiser), 3, list(DEV.prompts))[2])
        assert (pictures[0] - pictures[1]).abs().max() > 1e-4

    def test_schnell_has_no_such_input(self, folders):
        assert SCHNELL.denoiser(folders["schnell"]).embedded_guidance is None
        with pytest.raises(ConfigError, match=r"`embedded_guidance` must be left out, got 3.5"):
            SCHNELL.denoiser(folders["schnell"], embedded_guidance=3.5)


def test_half_precision_rounds_as_the_pipeline_does(folders):
    """Weights, times and stored latents; only the scheduler rounds each step as well, the policy does not."""
    denoiser = DEV.denoiser(folders["dev"], dtype="bfloat16")
    pipeline = DEV.load(folders["dev"], dtype=torch.bfloat16)
    actor = Actor(denoiser, storage_dtype="bfloat16")
    start, final, pictures = DEV.drawn(denoiser, actor, 4, list(DEV.prompts))
    expected = DEV.by_pipeline(pipeline, denoiser, start, 1.0, 4, DEV.prompts)
    assert final.dtype == torch.bfloat16 and expected.dtype == torch.bfloat16
    assert (pictures - expected.float()).abs().max() <= 0.05


class TestRefused:
    @pytest.mark.parametrize("size", [{"height": 30}, {"width": 20}, {"height": -8}])
    def test_sizes_that_do_not_fit(self, folders, size):
        with pytest.raises(ConfigError, match=r"must be a positive multiple of 8, got .*; try (8|16|24)"):
            DEV.denoiser(folders["dev"], **size)

    def test_texts_longer_than_the_pipeline_allows(self, folders):
        with pytest.raises(ConfigError, match="`max_sequence_length` must be at most 512, got 600; try 512"):
            DEV.denoiser(folders["dev"], max_sequence_length=600)

    def test_pipelines_that_share_its_network(self, folders, tmp_path):
        """Fill, Control and Kontext have the same classes of transformer and decoder."""
        folder = checks.edited_copy(
            folders["dev"], tmp_path / "fill", "model_index.json", _class_name="FluxFillPipeline"
        )
        with pytest.raises(ModelNotFound, match="is of FluxFillPipeline, not of FluxPipeline"):
            DEV.denoiser(folder)

    def test_another_familys_checkpoint(self, tiny_dir):
        with pytest.raises(ModelNotFound, match="SD3Transformer2DModel, not a FluxTransformer2DModel"):
            Flux1Denoiser(str(tiny_dir))

    def test_missing_parts(self, folders, tmp_path):
        folder = shutil.copytree(folders["dev"], tmp_path / "torn")
        shutil.rmtree(folder / "text_encoder_2")
        denoiser = DEV.denoiser(folder)
        with pytest.raises(ModelNotFound, match="needs no download"):
            denoiser.encode(list(DEV.prompts))
        (folder / "transformer/diffusion_pytorch_model.safetensors").unlink()
        with pytest.raises(ModelNotFound, match="needs no download"):
            denoiser.network()

    def test_schedulers_that_are_not_understood(self, folders, tmp_path):
        file = "scheduler/scheduler_config.json"
        folder = checks.edited_copy(folders["dev"], tmp_path / "odd", file, sharpness=2.0)
        with pytest.raises(ConfigError, match="`sharpness` must be a setting of diffusers'"):
            DEV.denoiser(folder)
