"""Wan 2.2 TI2V-5B from text on a tiny checkpoint, against its pipeline."""

import pytest
import torch
from models import family_checks as checks
from models.family_checks import edited_copy as edited
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


@pytest.mark.parametrize("agent", ["grpo", "flow_dppo", "drpo"])
def test_it_trains_by_its_recipe(folder, cluster, agent):
    checks.trains(WAN_5B, folder, "diffusion/wan", agent)


def test_the_network_is_told_a_time_for_each_token(folder):
    denoiser, told = WAN_5B.denoiser(folder), []
    network = denoiser.network()
    network.register_forward_pre_hook(lambda _, args, named: told.append(named["timestep"]), with_kwargs=True)
    context = denoiser.encode(WAN_5B.prompts[:1])
    with torch.no_grad():
        denoiser.velocity(network, torch.zeros(1, *denoiser.latent_shape), torch.tensor([0.5]), context)
    assert denoiser.latent_shape == (12, 2, 4, 6)
    assert torch.equal(told[0], torch.full((1, 2 * 2 * 3), 500.0))


def test_sides_are_multiples_of_32(folder):
    with pytest.raises(ConfigError, match="`height` must be a positive multiple of 32, got 48; try 32 or 64"):
        WAN_5B.denoiser(folder, height=48)


def test_one_time_for_all_tokens_is_the_same_to_rounding(folder, tmp_path):
    plain = edited(folder, tmp_path / "plain", "model_index.json", expand_timesteps=False)
    found = []
    for each in (folder, plain):
        denoiser = WAN_5B.denoiser(each)
        context = denoiser.encode(WAN_5B.prompts)
        noise = torch.randn(3, *denoiser.latent_shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            found.append(denoiser.velocity(denoiser.network(), noise, torch.tensor([1.0, 0.6, 0.2]), context))
    assert torch.allclose(*found, atol=1e-5)
