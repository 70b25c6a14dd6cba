"""Clips that a picture leads: its places are context, and no part of what is denoised."""

from dataclasses import dataclass

import pytest
import torch
from models.family_checks import Family
from models.ltx_cases import CHANNELS, LTX_I2V
from models.wan_cases import WAN_5B_I2V, WIDE

from unirl_env.errors import ConfigError, ContractError
from unirl_env.functional.sde import HALF_LOG_TWO_PI
from unirl_env.models import check_denoiser
from unirl_env.models.shared.from_picture import FIRST
from unirl_env.policies.actor import Actor


@dataclass(frozen=True)
class Led:
    """A family of such clips.

    Attributes:
        family: Its checks.
        moving: The shape of a latent: the places that move.
        first: The shape of a picture's latent.
        places: Where the picture's stand in what the network says.
        kind: The denoiser's class.
        frames: What is tried in the place of one frame.
    """

    family: Family
    moving: tuple[int, ...]
    first: tuple[int, ...]
    places: tuple[slice, ...]
    kind: str
    frames: int


EVERY = slice(None)
LED = {
    # One of two frames of 2 x 3 places moves.
    "ltx": Led(LTX_I2V, (6, CHANNELS), (6, CHANNELS), (EVERY, slice(6)), "LTXI2VDenoiser", 161),
    "wan": Led(WAN_5B_I2V, (WIDE, 1, 4, 6), (WIDE, 1, 4, 6), (EVERY, EVERY, slice(1)), "WanI2VDenoiser", 81),
}


@pytest.fixture(scope="module", params=LED)
def led(request):
    return LED[request.param]


@pytest.fixture(scope="module")
def folder(led, checkpoint):
    return checkpoint(led.family)


def test_the_pictures_elements_have_no_say(led, folder):
    """What the network says of them changes neither what is drawn nor how probable it is."""
    denoiser = led.family.denoiser(folder)
    assert denoiser.latent_shape == led.moving
    actor, obs = Actor(denoiser), led.family.observed(denoiser, 1.0)
    assert obs[FIRST].shape == (3, *led.first) and obs[FIRST].dtype == torch.float32
    noise = torch.randn(obs["latent"].shape, generator=torch.Generator().manual_seed(1))
    forward = denoiser._forward

    def otherwise(*arguments):
        said = forward(*arguments).clone()
        said[led.places] += 7.0
        return said

    with torch.no_grad():
        step = actor.act(obs, noise)
        denoiser._forward = otherwise
        other = actor.act(obs, noise)
    assert torch.equal(step.latent, other.latent) and torch.equal(step.log_prob, other.log_prob)
    std = step.std.view(-1, *[1] * len(led.moving))
    miss = ((step.latent - step.mean) / std).square().flatten(1).mean(1)
    assert torch.allclose(step.log_prob, -miss / 2 - step.std.log() - HALF_LOG_TWO_PI, atol=1e-6)


@pytest.mark.parametrize(
    ("context", "told"), [(None, "None"), ({"prompt_embeds": torch.zeros(1)}, r"\['prompt_embeds'\]")]
)
def test_without_its_picture_a_clip_is_not_decoded(led, folder, context, told):
    denoiser = led.family.denoiser(folder)
    with pytest.raises(ContractError, match=rf"`context` must hold `first_latent`.* got {told}; try that of"):
        denoiser.decode(torch.zeros(1, *denoiser.latent_shape), context)


def test_a_clip_of_the_picture_alone_is_refused(led, folder):
    with pytest.raises(ConfigError, match=rf"`num_frames` must be more than 1 .* got 1; try {led.frames}"):
        led.family.denoiser(folder, num_frames=1)


def test_the_judge_says_that_it_is_none_for_it(led, folder):
    with pytest.raises(ConfigError, match=f"must step all of its pipeline's latent, got a {led.kind}"):
        check_denoiser(led.family.denoiser(folder))
