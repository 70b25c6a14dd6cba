"""PixArt-Sigma on a tiny checkpoint, against its pipeline."""

import pytest
import torch
from models import family_checks as checks
from models.family_checks import edited_copy as edited
from models.pixart_cases import PIXART

from unirl_env.errors import ConfigError, ModelNotFound

SCHEDULER, TRANSFORMER = "scheduler/scheduler_config.json", "transformer/config.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, quiet_models):
    folder = tmp_path_factory.mktemp("pixart")
    PIXART.build(folder)
    return folder


@pytest.mark.parametrize("guidance", [1.0, 3.5])
@pytest.mark.parametrize("num_steps", [3, 8])
def test_it_draws_the_pipelines_pictures(folder, guidance, num_steps):
    checks.equals_the_pipeline(PIXART, folder, guidance=guidance, num_steps=num_steps)


def test_its_latents_are_the_pipelines(folder):
    checks.its_latents_are_the_pipelines(PIXART, folder, most=2e-5)


def test_it_is_read_by_its_former_name(folder, tmp_path):
    """As it is published: the class had no name of its own then."""
    old = edited(folder, tmp_path / "named", TRANSFORMER, _class_name="Transformer2DModel")
    old = edited(old, tmp_path / "old", "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    one, other = PIXART.denoiser(folder), PIXART.denoiser(old)
    assert type(other.network()) is type(one.network())
    context = other.encode(list(PIXART.prompts))
    assert all(
        torch.equal(tensor, context[name]) for name, tensor in one.encode(list(PIXART.prompts)).items()
    )


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("exact", [True, False])
def test_it_agrees_with_itself(folder, lora, exact):
    checks.agrees_with_itself(PIXART, folder, lora=lora, exact=exact)


def test_what_it_exports_loads(folder, tmp_path):
    checks.adapters_load_in_the_pipeline(PIXART, folder, tmp_path / "adapters")
    checks.whole_weights_load(PIXART, folder, tmp_path / "weights")


def test_pictures_of_evaluation_may_have_another_size(folder):
    checks.another_size_is_the_pipelines(PIXART, folder, 32, 80)


def test_it_draws_for_texts(folder):
    checks.draws_for_texts(PIXART, folder)


def test_recomputing_changes_no_gradient(folder):
    checks.recomputing_changes_nothing(PIXART, folder)


def test_it_keeps_the_contract(folder):
    checks.keeps_the_contract(PIXART, folder)


@pytest.mark.ray
@pytest.mark.parametrize("agent", ["grpo", "flow_dppo", "drpo"])
def test_a_recipe_trains_it(folder, cluster, agent):
    checks.trains(PIXART, folder, "diffusion/sdxl", agent, "model=pixart")


class TestRefusals:
    @pytest.mark.parametrize("size", [{"height": 40}, {"width": 8}])
    def test_sizes(self, folder, size):
        with pytest.raises(ConfigError, match=f"`{next(iter(size))}` must be a positive multiple of 16.*try"):
            PIXART.denoiser(folder, **size)

    def test_pixart_alpha(self, folder, tmp_path):
        other = edited(folder, tmp_path / "alpha", TRANSFORMER, use_additional_conditions=True)
        with pytest.raises(ConfigError, match=r"`use_additional_conditions`.*PixArt-Alpha.*try"):
            PIXART.denoiser(other)

    def test_another_family(self, folder, tmp_path):
        other = edited(folder, tmp_path / "other", TRANSFORMER, _class_name="SD3Transformer2DModel")
        with pytest.raises(ModelNotFound, match="its transformer is a SD3Transformer2DModel, not a PixArt"):
            PIXART.denoiser(other)

    def test_missing_parts(self, folder, tmp_path):
        torn = edited(folder, tmp_path / "torn", TRANSFORMER)
        (torn / "vae" / "diffusion_pytorch_model.safetensors").unlink()
        with pytest.raises(ModelNotFound, match="Try a local directory"):
            PIXART.denoiser(torn).decode(torch.zeros(1, 4, 6, 8))

    def test_a_scheduler_of_flows(self, folder, tmp_path):
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        other = edited(folder, tmp_path / "flow", SCHEDULER, **flow)
        with pytest.raises(ConfigError, match="`use_flow_sigmas` of the scheduler must be false or null"):
            PIXART.denoiser(other)

    def test_cleaning_without_what_it_takes(self, folder, monkeypatch):
        import diffusers.utils

        monkeypatch.setattr(diffusers.utils, "is_bs4_available", lambda: False)
        with pytest.raises(ConfigError, match=r"`clean_caption`.*try pip install"):
            PIXART.denoiser(folder, clean_caption=True)
