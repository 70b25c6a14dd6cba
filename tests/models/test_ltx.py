"""What LTX-Video alone has, on a tiny checkpoint."""

from dataclasses import replace

import pytest
import torch
from models import family_checks as checks
from models.family_checks import edited_copy as edited
from models.ltx_cases import DECODING, LTX, NOISY, build, call, from_one_stream

from unirl_env.errors import ConfigError, ModelNotFound
from unirl_env.models.shared.noisy_decoder import SEED


def noisy_call(prompts, guidance):
    """With the noise that episodes decode with."""
    generators = [torch.Generator().manual_seed(SEED) for _ in prompts]
    return {**call(prompts, guidance), **DECODING, "generator": generators}


NOISED = replace(LTX, call=noisy_call, prepare=from_one_stream, options={**LTX.options, **DECODING})


@pytest.fixture(scope="module")
def folder(checkpoint):
    return checkpoint(LTX)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory, quiet_models):
    folder = tmp_path_factory.mktemp("ltx_noisy")
    build(folder, **NOISY)
    return folder


def test_its_shift_counts_all_places_of_the_clip(folder):
    denoiser = LTX.denoiser(folder, height=480, width=704, num_frames=161)
    assert denoiser.num_tokens == denoiser.latent_shape[0] == 21 * 15 * 22
    short, long = LTX.denoiser(folder).sigmas(4), denoiser.sigmas(4)
    assert (long[1:3] > short[1:3] + 0.01).all() and abs(float(long[-2]) - 0.1) < 1e-6


def test_the_network_is_told_how_fast_the_clip_is(folder):
    slow, fast = LTX.denoiser(folder), LTX.denoiser(folder, fps=30)
    latent = torch.randn(1, *slow.latent_shape, generator=torch.Generator().manual_seed(0))
    context, network = slow.encode(LTX.prompts[:1]), slow.network()
    with torch.no_grad():
        one, other = (each.velocity(network, latent, torch.ones(1), context) for each in (slow, fast))
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_a_decoder_that_adds_noise_films_the_pipelines_clips(noisy, guidance):
    checks.equals_the_pipeline(NOISED, noisy, guidance=guidance, num_steps=3)


def test_noise_of_decoding_is_the_same_whenever_and_beside_whatever(noisy):
    denoiser = NOISED.denoiser(noisy)
    latents = torch.randn(3, *denoiser.latent_shape, generator=torch.Generator().manual_seed(0))
    denoiser.frozen  # noqa: B018  # loading draws from torch's own stream
    before = torch.random.get_rng_state()
    first = [sample.video for sample in denoiser.decode(latents)]
    assert torch.equal(torch.random.get_rng_state(), before), "torch's own stream must stay as it was"
    alone = denoiser.decode(latents[1:2])[0].video
    assert torch.equal(first[1], alone)
    clear = LTX.denoiser(noisy).decode(latents[1:2])[0].video
    assert not torch.equal(clear, alone), "how it is decoded must matter"
    assert torch.equal(clear, LTX.denoiser(noisy).decode(latents[1:2])[0].video)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_frames": 8}, "one more than a multiple of 8, got 8; try 1 or 9"),
        ({"height": 80}, "`height` must be a positive multiple of 32, got 80; try 64 or 96"),
        (
            {"decode_timestep": 0.05},
            "`decode_timestep` must be left out, got 0.05: the decoder is told no time",
        ),
    ],
)
def test_what_it_cannot_film_is_refused(folder, options, told):
    with pytest.raises(ConfigError, match=told):
        LTX.denoiser(folder, **options)


def test_noise_of_decoding_is_within_its_bounds(noisy):
    with pytest.raises(ConfigError, match=r"`decode_noise_scale` must be in \[0, 1\], got 2"):
        LTX.denoiser(noisy, decode_noise_scale=2)


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("scheduler/scheduler_config.json", {"invert_sigmas": True}, "`invert_sigmas`"),
        (
            "transformer/config.json",
            {"patch_size_t": 2},
            "`patch_size_t` of the transformer must be 1, got 2",
        ),
    ],
)
def test_settings_are_honoured_or_refused(folder, tmp_path, file, change, told):
    changed = edited(folder, tmp_path / "changed", file, **change)
    with pytest.raises(ConfigError, match=told):
        LTX.denoiser(changed)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("LTXConditionPipeline", "model_index.json is of LTXConditionPipeline, not of LTXPipeline"),
        (
            "LTX2Pipeline",
            "LTX2Pipeline, whose network denoises two states at once, video and sound",
        ),
    ],
)
def test_another_familys_checkpoint_is_refused(folder, tmp_path, kind, told):
    other = edited(folder, tmp_path / "other", "model_index.json", _class_name=kind)
    with pytest.raises(ModelNotFound, match=told):
        LTX.denoiser(other)
