"""Every family of diffusers before the judge, on its tiny checkpoint."""

from importlib import import_module

import pytest
from conftest import FAMILIES

from unirl_env.models import check_denoiser


@pytest.mark.parametrize("id", FAMILIES)
def test_it_is_acquitted(id, tmp_path, monkeypatch):
    pytest.importorskip(FAMILIES[id])
    family = import_module(FAMILIES[id]).CASES[id]
    family.build(tmp_path)
    denoiser = family.denoiser(tmp_path)
    if id == "unirl/QwenImage-Edit-v0":
        small_areas(monkeypatch, denoiser.image_pixels)
    report = check_denoiser(denoiser)
    assert max(report.gaps.values()) <= 1e-5
    compared = {"schedule", "initial latents", "velocity", "picture"}
    assert compared | ({"guided velocity"} if len(family.guidances) > 1 else set()) <= set(report.gaps)
    assert report.pipeline == family.pipeline and report.size == (family.height, family.width)


def small_areas(monkeypatch, pixels):
    """The pipeline scales pictures to fewer pixels than 1024 x 1024."""
    module = import_module("diffusers.pipelines.qwenimage.pipeline_qwenimage_edit")
    own = module.calculate_dimensions
    monkeypatch.setattr(
        module, "calculate_dimensions", lambda area, ratio: own(pixels if area == 1024**2 else area, ratio)
    )
