"""What FLUX.2 Klein, base and distilled, and FLUX.2 dev alone have, on tiny checkpoints."""

import shutil

import gymnasium as gym
import pytest
import torch
from models import family_checks as checks
from models.flux2_cases import DEV, DISTILLED, KLEIN, LENGTH

from unirl_env import train
from unirl_env.errors import ConfigError, ModelNotFound
from unirl_env.models.flux2 import Flux2Denoiser, Flux2KleinDenoiser
from unirl_env.policies.actor import Actor
from unirl_env.run.agent_setup import agent_config
from unirl_env.types import Prompt

FAMILIES = {"klein": KLEIN, "distilled": DISTILLED, "dev": DEV}


@pytest.fixture(scope="module")
def folders(checkpoint):
    """By name, where the tiny checkpoint of a family is."""
    return lambda name: checkpoint(FAMILIES[name])


@pytest.mark.parametrize("name", ["klein", "dev"])
def test_other_sizes_are_other_schedules(folders, name):
    family, folder = FAMILIES[name], folders(name)
    checks.equals_the_pipeline(family, folder, guidance=1.0, height=24, width=8)
    small, large = (family.denoiser(folder, height=side, width=side).sigmas(4) for side in (8, 64))
    assert not torch.allclose(small, large)


def test_the_shift_depends_on_the_number_of_steps(folders):
    """So that every other level of ten steps is no schedule of five."""
    denoiser = KLEIN.denoiser(folders("klein"))
    assert (denoiser.sigmas(10)[::2] - denoiser.sigmas(5)).abs().max() > 1e-3


def test_the_published_ranges_are_of_its_own_size():
    elements = 32 * 32 * 128
    config = agent_config(train.settings("diffusion/flux2_klein"))
    assert config.clip_range(elements) == (5e-3, 5e-3)
    config = agent_config(train.settings("diffusion/flux2_klein", ["agent=flow_dppo"]))
    assert config.kl_border(elements) == 1e-5


class TestContexts:
    def test_they_are_the_pipelines_own_and_as_wide_for_every_text(self, folders):
        for name in ("klein", "dev"):
            family, folder = FAMILIES[name], folders(name)
            denoiser, pipeline = family.denoiser(folder), family.load(folder)
            length = denoiser.max_sequence_length
            texts = [prompt.text for prompt in family.prompts]
            with torch.no_grad():
                expected, _ = pipeline.encode_prompt(texts, max_sequence_length=length)
            found = denoiser.encode(list(family.prompts))
            assert set(found) == {"prompt_embeds"} and found["prompt_embeds"].shape[:2] == (3, length)
            assert torch.equal(found["prompt_embeds"], expected)
            assert (expected[0] - expected[1]).abs().max() > 1e-2, "texts must matter"

    def test_another_length_is_another_picture(self, folders):
        """What fills a text up is read as well."""
        pictures = []
        for length in (LENGTH, LENGTH + 16):
            denoiser = KLEIN.denoiser(folders("klein"), max_sequence_length=length)
            pictures.append(KLEIN.drawn(denoiser, Actor(denoiser), 3, list(KLEIN.prompts))[2])
        assert (pictures[0] - pictures[1]).abs().max() > 1e-3

    @pytest.mark.parametrize("name", ["klein", "dev"])
    def test_a_text_that_is_cut_is_told(self, folders, name, tmp_path, caplog):
        shutil.copytree(folders(name), tmp_path / "told")  # each checkpoint is told once
        denoiser = FAMILIES[name].denoiser(tmp_path / "told")
        denoiser.encode([Prompt("a red circle")])
        assert "do not read every prompt to its end" not in caplog.text
        denoiser.encode([Prompt("a red circle and " * 40)])
        assert "do not read every prompt to its end" in caplog.text


class TestGuidance:
    def test_a_distilled_checkpoint_has_none(self, folders):
        denoiser = DISTILLED.denoiser(folders("distilled"))
        with pytest.raises(
            ConfigError, match=r"`guidance` must be 1, got 4: .*is distilled.*base checkpoint"
        ):
            Actor(denoiser, guidance=4.0)
        with pytest.raises(ConfigError, match="`guidance` must be 1, got 2"):
            with Actor(denoiser).latent_head().guided(2.0):
                pass
        with pytest.raises(ConfigError, match="`with_negative` must be False, and `guidance`"):
            gym.make(DISTILLED.id, **{**DISTILLED.arguments(folders("distilled")), "with_negative": True})

    def test_that_of_dev_is_an_input_of_the_network(self, folders):
        folder = folders("dev")
        assert Flux2Denoiser(str(folder)).embedded_guidance == 4.0
        with pytest.raises(ConfigError, match=r"`guidance` must be 1, got 2: .*`embedded_guidance`"):
            Actor(DEV.denoiser(folder), guidance=2.0)
        pictures = []
        for told in (2.5, 4.0):
            denoiser = DEV.denoiser(folder, embedded_guidance=told)
            pictures.append(DEV.drawn(denoiser, Actor(denoiser), 3, list(DEV.prompts))[2])
        assert (pictures[0] - pictures[1]).abs().max() > 1e-4

    def test_klein_is_told_none(self, folders):
        with pytest.raises(ConfigError, match=r"`embedded_guidance` must be left out, got 3.5"):
            KLEIN.denoiser(folders("klein"), embedded_guidance=3.5)
        with pytest.raises(ConfigError, match="`embedded_guidance`"):
            DEV.denoiser(folders("dev"), embedded_guidance="much")


def test_half_precision_rounds_as_the_pipeline_does(folders):
    """Weights, times and stored latents; only the scheduler rounds each step as well, the policy does not."""
    denoiser = KLEIN.denoiser(folders("klein"), dtype="bfloat16")
    pipeline = KLEIN.load(folders("klein"), dtype=torch.bfloat16)
    actor = Actor(denoiser, storage_dtype="bfloat16")
    start, final, pictures = KLEIN.drawn(denoiser, actor, 4, list(KLEIN.prompts))
    expected = KLEIN.by_pipeline(pipeline, denoiser, start, 1.0, 4, KLEIN.prompts)
    assert final.dtype == torch.bfloat16 and expected.dtype == torch.bfloat16
    assert (pictures - expected.float()).abs().max() <= 0.05


class TestRefused:
    @pytest.mark.parametrize("size", [{"height": 30}, {"width": 20}, {"height": -8}])
    def test_sizes_that_do_not_fit(self, folders, size):
        with pytest.raises(ConfigError, match=r"must be a positive multiple of 8, got .*; try (8|16|24)"):
            KLEIN.denoiser(folders("klein"), **size)

    def test_the_checkpoint_of_the_other_pipeline(self, folders):
        """Both have transformers and decoders of the same classes."""
        with pytest.raises(ModelNotFound, match="is of Flux2Pipeline, not of Flux2KleinPipeline"):
            Flux2KleinDenoiser(str(folders("dev")))
        with pytest.raises(ModelNotFound, match="is of Flux2KleinPipeline, not of Flux2Pipeline"):
            Flux2Denoiser(str(folders("klein")))

    def test_another_familys_checkpoint(self, tiny_dir):
        with pytest.raises(ModelNotFound, match="SD3Transformer2DModel, not a Flux2Transformer2DModel"):
            Flux2KleinDenoiser(str(tiny_dir))

    def test_missing_parts(self, folders, tmp_path):
        folder = shutil.copytree(folders("klein"), tmp_path / "torn")
        shutil.rmtree(folder / "text_encoder")
        denoiser = KLEIN.denoiser(folder)
        with pytest.raises(ModelNotFound, match=r"text_encoder|needs no download"):
            denoiser.encode(list(KLEIN.prompts))
        (folder / "transformer/diffusion_pytorch_model.safetensors").unlink()
        with pytest.raises(ModelNotFound, match="needs no download"):
            denoiser.network()

    @pytest.mark.parametrize(
        "changes, named",
        [
            ({"sharpness": 2.0}, "`sharpness` must be a setting of diffusers'"),
            ({"stochastic_sampling": True}, "`stochastic_sampling` of the scheduler must be false"),
            ({"_class_name": "DDIMScheduler"}, "got 'DDIMScheduler'"),
        ],
    )
    def test_schedulers_that_are_not_understood(self, folders, tmp_path, changes, named):
        file = "scheduler/scheduler_config.json"
        folder = checks.edited_copy(folders("klein"), tmp_path / "odd", file, **changes)
        with pytest.raises(ConfigError, match=named):
            KLEIN.denoiser(folder)
