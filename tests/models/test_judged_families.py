"""Every family of diffusers before the judge, on its tiny checkpoint."""

from importlib import import_module

import pytest
import torch
from families import FAMILIES

from unirl_env.errors import ConfigError, ContractError
from unirl_env.models import Denoiser, check_denoiser

GUIDERS = ("unirl/HunyuanVideo15-T2V-v0", "unirl/HunyuanVideo15-I2V-v0")
"""Whose pipelines are told their guidance by a part of theirs."""
LED = ("unirl/LTX-I2V-v0",)
"""Whose latents are a part of their pipelines'."""


@pytest.mark.parametrize("id", [id for id in FAMILIES if id not in (*GUIDERS, *LED)])
def test_it_is_acquitted(id, tmp_path, monkeypatch):
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


def test_who_has_a_guider_is_not_tried(tmp_path):
    family = import_module(FAMILIES[GUIDERS[0]]).CASES[GUIDERS[0]]
    family.build(tmp_path)
    with pytest.raises(ConfigError, match=r"`denoiser` must be of a pipeline whose guidance .* has a guider"):
        check_denoiser(family.denoiser(tmp_path))


def small_areas(monkeypatch, pixels):
    """The pipeline scales pictures to fewer pixels than 1024 x 1024."""
    module = import_module("diffusers.pipelines.qwenimage.pipeline_qwenimage_edit")
    own = module.calculate_dimensions
    monkeypatch.setattr(
        module, "calculate_dimensions", lambda area, ratio: own(pixels if area == 1024**2 else area, ratio)
    )


@pytest.mark.parametrize("option", ["cfg_normalization", "cfg_truncation"])
def test_options_of_the_pipelines_own_names_are_handed_on(option, tmp_path):
    family = import_module(FAMILIES["unirl/ZImage-T2I-v0"]).CASES["unirl/ZImage-T2I-v0"]
    family.build(tmp_path)
    denoiser = family.denoiser(tmp_path, **{option: 0.3})
    assert max(check_denoiser(denoiser).gaps.values()) <= 1e-5
    for call in ({option: 1.0}, {option: 0.05}):
        with pytest.raises(ContractError, match="- guided velocity"):
            check_denoiser(denoiser, call=call)


def swapped(denoiser, monkeypatch):
    """Rows and columns of a picture's tokens the other way round."""
    places = denoiser._places[..., [0, 2, 1, *range(3, denoiser._places.shape[-1])]]
    vars(denoiser).pop("_places", None)
    monkeypatch.setattr(type(denoiser), "_places", places)


def told_otherwise(denoiser, monkeypatch):
    """Another guidance as the network's input than the one that the denoiser names."""
    when = type(denoiser)._when
    monkeypatch.setattr(
        type(denoiser), "_when", lambda *given: {**when(*given), "guidance": torch.full_like(given[1], 3.0)}
    )


def plain_guidance(denoiser, monkeypatch):
    monkeypatch.setattr(type(denoiser), "guided", Denoiser.guided)


def unmasked(denoiser, monkeypatch):
    forward = type(denoiser)._forward

    def all_counted(self, network, latent, sigma, context):
        mask = torch.ones_like(context["prompt_embeds_mask"])
        return forward(self, network, latent, sigma, {**context, "prompt_embeds_mask": mask})

    monkeypatch.setattr(type(denoiser), "_forward", all_counted)


def negated(denoiser, monkeypatch):
    forward = type(denoiser)._forward
    monkeypatch.setattr(type(denoiser), "_forward", lambda *given: -forward(*given))


def backwards(denoiser, monkeypatch):
    forward = type(denoiser)._forward
    monkeypatch.setattr(
        type(denoiser),
        "_forward",
        lambda self, net, x, sigma, context: forward(self, net, x, 1 - sigma, context),
    )


def instructed(denoiser, monkeypatch):
    """Negative prompts read as prompts are."""
    monkeypatch.setattr(type(denoiser), "_encode_negative", type(denoiser)._encode)


def unit_noise(denoiser, monkeypatch):
    monkeypatch.setattr(type(denoiser), "start", Denoiser.start)


TRAPS = [
    ("unirl/Flux1-T2I-v0", swapped, "- `img_ids`: off by"),
    ("unirl/Flux2Klein-T2I-v0", swapped, "- `img_ids`: off by"),
    ("unirl/Flux2-T2I-v0", told_otherwise, "- `guidance`: off by"),
    ("unirl/QwenImage-T2I-v0", plain_guidance, "- guided velocity: off by"),
    ("unirl/QwenImage-T2I-v0", unmasked, "- `encoder_hidden_states"),
    ("unirl/ZImage-T2I-v0", negated, "- velocity: .* the sign is the other one"),
    ("unirl/ZImage-T2I-v0", backwards, "- `t`: off by"),
    ("unirl/Sana-T2I-v0", instructed, "- `encoder_hidden_states`: .*guidance 3.5"),
    ("unirl/SD15-T2I-v0", unit_noise, "- initial latents: off by"),
    ("unirl/SDXL-T2I-v0", backwards, "- `timestep`: off by"),
]


@pytest.mark.parametrize(("id", "trap", "words"), TRAPS)
def test_who_falls_into_a_trap_of_the_family_is_convicted(id, trap, words, tmp_path, monkeypatch):
    family = import_module(FAMILIES[id]).CASES[id]
    family.build(tmp_path)
    denoiser = family.denoiser(tmp_path)
    trap(denoiser, monkeypatch)
    with pytest.raises(ContractError, match=words):
        check_denoiser(denoiser, num_steps=(2,))
