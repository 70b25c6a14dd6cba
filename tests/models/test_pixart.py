"""What PixArt-Sigma alone has, on a tiny checkpoint."""

import pytest
import torch
from models.family_checks import edited_copy as edited
from models.pixart_cases import PIXART

from unirl_env.errors import ConfigError, ModelNotFound

SCHEDULER, TRANSFORMER = "scheduler/scheduler_config.json", "transformer/config.json"


@pytest.fixture(scope="module")
def folder(checkpoint):
    return checkpoint(PIXART)


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
