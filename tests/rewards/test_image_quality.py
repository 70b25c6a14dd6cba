"""JPEG size, sharpness and saturation against closed forms."""

import io
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image

from unirl_env.errors import ConfigError, ContractError, ScorerError
from unirl_env.rewards import build_scorer, score_safely
from unirl_env.rewards.pictures.image_quality import JPEGScorer, SaturationScorer, SharpnessScorer
from unirl_env.types import Prompt, Sample

ALL = [JPEGScorer(), SharpnessScorer(), SaturationScorer()]


def judge(scorer, *pictures):
    return scorer([Sample(image=picture) for picture in pictures], [Prompt("p")] * len(pictures))


def flat(*rgb, size=16):
    return torch.tensor(rgb)[:, None, None].expand(3, size, size).contiguous()


def checkerboard(size=16):
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((x + y) % 2).float().expand(3, size, size).contiguous()


def noise(size=64, seed=0):
    return torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed))


# JPEG


def test_the_size_is_that_of_the_file():
    picture = noise()
    stream = io.BytesIO()
    pixels = (picture.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    Image.fromarray(pixels).save(stream, format="JPEG", quality=95)
    size = len(stream.getvalue())
    small, large = judge(JPEGScorer(), picture), judge(JPEGScorer("incompressible"), picture)
    assert small.value.item() == pytest.approx(-size / 1000)
    assert large.value.item() == pytest.approx(size / 1000)
    assert small.parts["kilobytes"].item() == pytest.approx(size / 1000)
    assert small.parts["bits_per_pixel"].item() == pytest.approx(8 * size / 64**2)
    per_pixel = judge(JPEGScorer("incompressible", per_pixel=True), picture)
    assert per_pixel.value.item() == pytest.approx(8 * size / 64**2)


def test_what_is_plain_compresses_and_noise_does_not():
    ramp = torch.linspace(0, 1, 64).expand(3, 64, 64).contiguous()
    value = judge(JPEGScorer(), flat(0.5, 0.5, 0.5, size=64), ramp, noise()).value
    assert value[0] > value[1] > value[2]
    low, high = (judge(JPEGScorer(quality=quality), noise()).value for quality in (10, 95))
    assert low > 0.5 * high  # less than half of the bytes


def test_bits_per_pixel_compare_over_sizes():
    kilobytes = judge(JPEGScorer("incompressible"), noise(64), noise(256)).value
    bits = judge(JPEGScorer("incompressible", per_pixel=True), noise(64), noise(256)).value
    assert kilobytes[1] > 10 * kilobytes[0]
    assert bits[1] == pytest.approx(bits[0].item(), rel=0.2)


# Sharpness


def test_the_laplacian_of_pictures_that_can_be_told_by_hand():
    ramp = torch.linspace(0, 1, 16).expand(3, 16, 16).contiguous()
    bowl = (torch.linspace(-1, 1, 16) ** 2).expand(3, 16, 16).contiguous()
    variance = judge(SharpnessScorer(raw=True), checkerboard(), ramp, bowl, flat(0.3, 0.4, 0.5)).value
    assert variance.tolist() == pytest.approx([16.0, 0.0, 0.0, 0.0], abs=1e-10)
    # One bright pixel at distance from the border: -4 in the middle, 1 at four places, of 14 x 14.
    point = torch.zeros(3, 16, 16)
    point[:, 8, 8] = 1.0
    assert judge(SharpnessScorer(raw=True), point).value.item() == pytest.approx(20 / 196)
    # Green alone counts by its share in luma.
    green = point * torch.tensor([0.0, 1.0, 0.0])[:, None, None]
    assert judge(SharpnessScorer(raw=True), green).value.item() == pytest.approx(0.587**2 * 20 / 196)


def test_sharpness_saturates_at_one_and_is_a_half_where_it_says():
    board = checkerboard() * 0.5
    variance = judge(SharpnessScorer(raw=True), board).value.item()
    assert judge(SharpnessScorer(half=variance), board).value.item() == pytest.approx(0.5)
    assert 0.999 < judge(SharpnessScorer(), checkerboard()).value.item() < 1


def test_blur_makes_less_sharp():
    picture = noise()
    blurred = torch.nn.functional.avg_pool2d(picture[None], 3, 1, 1)[0]
    value = judge(SharpnessScorer(), picture, blurred).value
    assert value[0] > value[1] + 0.001


def test_a_picture_too_small_for_a_laplacian_fails_alone():
    with pytest.raises(ScorerError, match="at least 3 x 3 pixels"):
        judge(SharpnessScorer(), torch.rand(3, 2, 9))
    samples = [Sample(image=torch.rand(3, 2, 9)), Sample(image=noise())]
    assert score_safely(SharpnessScorer(), samples, [Prompt("p")] * 2).valid.tolist() == [False, True]


# Saturation


@pytest.mark.parametrize(
    ("rgb", "hsv", "hsl", "chroma"),
    [
        ((1.0, 0.0, 0.0), 1.0, 1.0, 1.0),
        ((0.5, 0.0, 0.0), 1.0, 1.0, 0.5),
        ((1.0, 0.5, 0.5), 0.5, 1.0, 0.5),
        ((0.6, 0.2, 0.4), 2 / 3, 0.5, 0.4),
        ((0.7, 0.7, 0.7), 0.0, 0.0, 0.0),
        ((0.0, 0.0, 0.0), 0.0, 0.0, 0.0),
        ((1.0, 1.0, 1.0), 0.0, 0.0, 0.0),
        ((0.01, 0.0, 0.0), 1.0, 1.0, 0.01),
    ],
)
def test_saturation_of_one_colour(rgb, hsv, hsl, chroma):
    found = [judge(SaturationScorer(measure=m), flat(*rgb)).value.item() for m in ("hsv", "hsl", "chroma")]
    assert found == pytest.approx([hsv, hsl, chroma], abs=1e-6)


def test_saturation_is_the_mean_over_pixels_and_falls_from_its_target():
    half = flat(1.0, 0.0, 0.0)
    half[:, :, 8:] = 0.4
    assert judge(SaturationScorer(), half).value.item() == pytest.approx(0.5)
    values = [
        judge(SaturationScorer(target=0.25), picture).value.item()
        for picture in (half, flat(1.0, 0.0, 0.0), flat(0.5, 0.5, 0.5), flat(0.8, 0.6, 0.6))
    ]
    assert values == pytest.approx([1 - 0.25 / 0.75, 0.0, 1 - 0.25 / 0.75, 1.0], abs=1e-6)
    assert judge(SaturationScorer(target=1.0), half).parts["saturation"].item() == pytest.approx(0.5)


# All of them


@pytest.mark.parametrize("scorer", ALL)
def test_what_is_not_finite_is_invalid_and_the_others_are_not(scorer):
    bad = noise()
    bad[1, 5, 5] = math.nan
    scores = score_safely(
        scorer, [Sample(image=p) for p in (noise(), bad, checkerboard())], [Prompt("p")] * 3
    )
    assert scores.valid.tolist() == [True, False, True]
    assert torch.equal(scores.value[0], judge(scorer, noise()).value[0])
    assert all(math.isnan(part[1]) for part in scores.parts.values())


@pytest.mark.parametrize("scorer", ALL)
def test_values_beyond_the_range_count_as_its_ends(scorer):
    picture = noise() * 3 - 1
    assert torch.equal(judge(scorer, picture).value, judge(scorer, picture.clamp(0, 1)).value)


@pytest.mark.parametrize("scorer", ALL)
@pytest.mark.parametrize(
    ("picture", "got"),
    [
        (noise() * 255, "values from .* to 25"),
        (noise() * 255 - 128, "values from -12.* to 12"),
        ((noise() * 255).byte(), "got torch.uint8; try `image.float"),
        (torch.full((3, 8, 8), 7, dtype=torch.int32), "got torch.int32"),
    ],
)
def test_bytes_are_no_picture_and_are_not_taken_for_white(scorer, picture, got):
    with pytest.raises(ContractError, match=rf"`Sample.image` must .* in \[0, 1\] for the reward.*{got}"):
        judge(scorer, picture)


@pytest.mark.parametrize("scorer", ALL)
@pytest.mark.parametrize("sample", [Sample(text="none"), Sample(image=torch.rand(1, 8, 8))])
def test_samples_without_a_picture_break_the_contract(scorer, sample):
    with pytest.raises(ContractError, match=r"`Sample.image` must be \[3, H, W\]"):
        scorer([sample], [Prompt("p")])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "jpeg", "direction": "smaller"}, "`direction` must be one of"),
        ({"name": "jpeg", "quality": 100}, "`quality` must be a whole number from 1 to 95, got 100"),
        ({"name": "jpeg", "quality": True}, "`quality`"),
        ({"name": "sharpness", "half": 0}, "`half` must be a positive number, got 0"),
        ({"name": "saturation", "measure": "lab"}, "`measure` must be one of"),
        ({"name": "saturation", "target": 1.5}, r"`target` must be a number in \[0, 1\], got 1.5"),
    ],
)
def test_bad_settings_are_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        build_scorer(spec)


@pytest.mark.parametrize("name", ["jpeg", "sharpness", "saturation"])
def test_it_is_the_reward_of_an_environment(name):
    env = gym.make_vec(
        "unirl_env:unirl/TinySD3-T2I-v0",
        num_envs=2,
        info_objects=True,
        num_steps=2,
        scorer={"name": name},
        array_backend="torch",
    )
    env.reset(seed=0)
    for _ in range(2):
        _, reward, terminated, _, info = env.step(env.action_space.sample())
    assert terminated.all() and info["scores"].valid.all()
    assert torch.equal(torch.as_tensor(reward).float(), info["scores"].value)
    env.close()
