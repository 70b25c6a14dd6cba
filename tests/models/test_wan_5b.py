"""Wan 2.2 TI2V-5B from text on a tiny checkpoint, against its pipeline."""

import pytest
from models import family_checks as checks
from models.wan_cases import WAN_5B

from unirl_env.errors import ConfigError


@pytest.fixture(scope="module")
def folder(tmp_path_factory, quiet_models):
    folder = tmp_path_factory.mktemp("wan_5b")
    WAN_5B.build(folder)
    return folder


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_it_films_the_pipelines_clips(folder, guidance):
    checks.equals_the_pipeline(WAN_5B, folder, guidance=guidance, num_steps=3)


def test_its_latents_are_the_pipelines(folder):
    checks.its_latents_are_the_pipelines(WAN_5B, folder)


@pytest.mark.parametrize("exact", [True, False])
def test_it_agrees_with_itself(folder, exact):
    checks.agrees_with_itself(WAN_5B, folder, lora=not exact, exact=exact)


def test_what_it_exports_loads(folder, tmp_path):
    checks.adapters_load_in_the_pipeline(WAN_5B, folder, tmp_path / "adapters")
    checks.whole_weights_load(WAN_5B, folder, tmp_path / "weights")


def test_recomputed_activations_give_the_same_gradients(folder):
    checks.recomputing_changes_nothing(WAN_5B, folder)


def test_it_keeps_the_contract(folder):
    checks.keeps_the_contract(WAN_5B, folder)


@pytest.mark.parametrize("agent", ["awm", "grpo", "flow_dppo", "drpo"])
def test_it_trains_by_its_recipe(folder, cluster, agent):
    checks.trains(WAN_5B, folder, "diffusion/wan", agent)


def test_sides_are_multiples_of_32(folder):
    with pytest.raises(ConfigError, match="`height` must be a positive multiple of 32, got 48; try 32 or 64"):
        WAN_5B.denoiser(folder, height=48)
