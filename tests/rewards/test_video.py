"""Consistency and motion on synthetic videos with known displacements."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from tiny_clips import picture, tiny_open_clip

from unirl_env.errors import ConfigError, ContractError
from unirl_env.rewards import MotionScorer, TemporalConsistency, build_scorer
from unirl_env.rewards.scoring import score_safely
from unirl_env.rewards.videos.block_matching import BLOCK, correlation, cut, likeness, nearest
from unirl_env.rewards.videos.motion import moved
from unirl_env.types import Prompt, Sample

FRAMES, HEIGHT, WIDTH = 10, 64, 96


def random(seed):
    return torch.Generator().manual_seed(seed)


def texture(height=HEIGHT, width=WIDTH, seed=0):
    coarse = torch.rand(1, 3, height // 8, width // 8, generator=random(seed))
    return nnf.interpolate(coarse, (height, width), mode="bilinear")[0] * 0.8 + 0.1


def ball(speed, background=None, frames=FRAMES):
    """A disc of radius 10 that moves to the right by `speed` pixels a frame."""
    ground = torch.full((3, HEIGHT, WIDTH), 0.3) if background is None else background
    y, x = torch.meshgrid(torch.arange(HEIGHT).float(), torch.arange(WIDTH).float(), indexing="ij")
    film = []
    for time in range(frames):
        distance = ((y - 32) ** 2 + (x - 20 - speed * time) ** 2).sqrt()
        inside = (10.5 - distance).clamp(0, 1)
        film.append(ground * (1 - inside) + inside * torch.tensor([0.9, 0.2, 0.1])[:, None, None])
    return torch.stack(film)


def noisy(video, strength, seed=7):
    return (video + strength * torch.randn(video.shape, generator=random(seed))).clamp(0, 1)


def judge(scorer, *videos):
    return scorer([Sample(video=video) for video in videos], [Prompt("")] * len(videos))


def test_nothing_moves_in_a_frozen_video_nor_in_its_noise_nor_in_flicker():
    flat, rich = ball(0), ball(0, texture())
    lamp = torch.tensor([1.0, 0.8] * (FRAMES // 2))[:, None, None, None]
    still = [flat, rich, noisy(flat, 0.02), noisy(rich, 0.05), noisy(rich, 0.2), rich * lamp, 1 - lamp * rich]
    scores = judge(MotionScorer(), *still)
    assert scores.value.tolist() == [0.0] * len(still) and scores.valid.all()
    assert scores.parts["speed"].max() < 0.002
    assert scores.parts["followed"][:2].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("ground", [None, texture()])
def test_the_speed_is_that_of_the_object(ground):
    speeds = [0.0, 0.25, 0.5, 1.0, 2.0, 3.0]
    scores = judge(MotionScorer(enough=0.03), *(ball(speed, ground) for speed in speeds))
    measured = scores.parts["speed"] * HEIGHT
    assert (measured.diff() > 0).all(), measured
    assert torch.allclose(measured, torch.tensor(speeds), rtol=0.3, atol=0.05), measured
    assert scores.value[0] == 0 and (scores.value.diff() >= 0).all()
    assert scores.value[-1] == 1 and 0 < scores.value[2] < scores.value[3] < 1


def test_enough_saturates_by_its_formula():
    for enough, floor in ((0.01, 0.002), (0.05, 0.0), (1.0, 0.01)):
        scores = judge(MotionScorer(enough, floor=floor), ball(1.0))
        speed = float(scores.parts["speed"])
        assert float(scores.value) == pytest.approx(min(1.0, (speed - floor) / (enough - floor)), abs=1e-5)


def test_the_unit_does_not_depend_on_the_resolution():
    small = ball(1.0)
    large = nnf.interpolate(small, scale_factor=4, mode="bilinear")
    one, other = judge(MotionScorer(), small, large).parts["speed"]
    assert one == pytest.approx(1 / 64, rel=0.1) and other == pytest.approx(float(one), rel=0.15)


def test_a_pan_is_motion_and_a_cut_or_unrelated_frames_are_not():
    wide = texture(HEIGHT, 160, seed=3)
    pan = torch.stack([wide[:, :, 2 * t : 2 * t + WIDTH] for t in range(FRAMES)])
    cut = torch.cat([texture(seed=1)[None].repeat(5, 1, 1, 1), texture(seed=2)[None].repeat(5, 1, 1, 1)])
    unlike = torch.stack([texture(seed=10 + t) for t in range(FRAMES)])
    scores = judge(MotionScorer(enough=0.05), pan, cut, unlike)
    assert scores.parts["speed"][0] * HEIGHT == pytest.approx(2.0, rel=0.05)
    assert scores.value[1] == 0 and scores.value[2] < 0.3 * scores.value[0], scores


def test_blocks_are_found_by_an_exact_shift_whatever_the_light():
    frame = torch.rand(3, 48, 40, generator=random(0))
    film = torch.stack([0.5**t * torch.roll(frame, (3 * t, -4 * t), dims=(1, 2)) + 0.2 * t for t in range(3)])
    far, known = moved(film, 0, 1)
    inner = far.reshape(11, 9)[:7, 4:]
    assert torch.equal(inner, torch.full((7, 5), 5.0)) and known > 0.4
    # Two frames that fit, and a third that does not show the same, are no motion.
    for witness in (torch.rand(3, 48, 40, generator=random(1)), film[1], film[0]):
        far, known = moved(torch.stack([film[0], film[1], witness]), 0, 1)
        assert far.sum() == 0 and known == 0
    assert moved(torch.ones(3, 3, 40, 40), 0, 1)[1] == 1.0


def test_fits_are_their_formulas():
    frame, other = torch.rand(2, 3, 24, 20, generator=random(2))
    blocks, place = cut(frame)
    fits, alike = (measure(blocks, other, place, 2) for measure in (correlation, likeness))
    for n in (0, 7, len(blocks) - 1):
        row, column = (place[n] + torch.tensor([1, -2])).tolist()
        inside = 0 <= row <= 24 - BLOCK and 0 <= column <= 20 - BLOCK
        if not inside:
            assert fits[n, 3, 0] == alike[n, 3, 0] == -math.inf
            continue
        theirs = other[:, row : row + BLOCK, column : column + BLOCK]
        assert float(alike[n, 3, 0]) == pytest.approx(-float((theirs - blocks[n]).square().mean()), abs=1e-5)
        a, b = (x - x.mean(dim=(1, 2), keepdim=True) for x in (blocks[n], theirs))
        assert float(fits[n, 3, 0]) == pytest.approx(float((a * b).sum() / (a.norm() * b.norm())), abs=1e-4)
    value, offset = nearest(fits)
    assert torch.equal(value, fits.flatten(1).max(dim=1).values) and offset.abs().max() <= 2
    assert nearest(torch.ones(1, 5, 5))[1].tolist() == [[0, 0]]


def test_what_goes_on_as_it_came_is_expected_and_what_does_not_is_a_surprise():
    wide = texture(HEIGHT, 160, seed=3)
    steady, sudden = ([0, 3, 6, 9, 12], [0, 3, 3, 12, 12])
    steady, sudden = (torch.stack([wide[:, :, at : at + WIDTH] for at in ways]) for ways in (steady, sudden))
    scores = judge(TemporalConsistency(), steady, sudden, steady[:2])
    assert scores.value[0] > 0.9 and scores.value[1] < 0.6, scores
    # Of two frames nothing is known but their difference.
    unlike = 2 * steady[:2].var(dim=(0, 2, 3), correction=0).mean() + 9e-4
    assert float(scores.value[2]) == pytest.approx(
        1 - math.sqrt((steady[1] - steady[0]).square().mean() / unlike), abs=0.03
    )
    assert torch.equal(scores.parts["neighbours"], scores.value)


def test_consistency_falls_from_frozen_to_moving_to_noise():
    scores = judge(
        TemporalConsistency(), ball(0), ball(2.0), torch.rand(FRAMES, 3, 64, 96, generator=random(0))
    )
    assert scores.value[0] == pytest.approx(1.0) and scores.value[1] > 0.85 and scores.value[2] < 0.1


def test_with_a_model_it_is_vbenchs_formula(tmp_path):
    import open_clip

    model, _ = tiny_open_clip(tmp_path)
    videos = [torch.stack([picture(10 * i + t) for t in range(2 + i)]) for i in range(3)]
    scores = judge(TemporalConsistency(model, rows_per_forward=4), *videos)
    clip, _, preprocess = open_clip.create_model_and_transforms(model)
    from torchvision.transforms.functional import to_pil_image

    for video, value in zip(videos, scores.value, strict=True):
        with torch.no_grad():
            frames = torch.stack([preprocess(to_pil_image(frame)) for frame in video])
            vectors = clip.eval().encode_image(frames)
        near = [
            max(0, nnf.cosine_similarity(vectors[t], vectors[t - 1], dim=0)) for t in range(1, len(video))
        ]
        first = [max(0, nnf.cosine_similarity(vectors[t], vectors[0], dim=0)) for t in range(1, len(video))]
        assert float(value) == pytest.approx(float(np.mean([*near, *first])), abs=1e-4)
    alone = [judge(TemporalConsistency(model, rows_per_forward=4), video).value for video in videos]
    assert torch.equal(torch.cat(alone), scores.value)


def test_the_product_wants_something_that_moves_and_stays_itself():
    reward = build_scorer({"name": "product", "parts": {"temporal_consistency": {}, "motion": {}}})
    noise = torch.rand(FRAMES, 3, HEIGHT, WIDTH, generator=random(1))
    unlike = torch.stack([texture(seed=10 + t) for t in range(FRAMES)])
    frozen = ball(0, texture())
    scores = judge(reward, ball(1.0, texture()), frozen, noisy(frozen, 0.05), noise, unlike)
    assert scores.value[0] > 0.8 and (scores.value[1:] < 0.2).all(), scores
    assert reward.pointwise and torch.equal(judge(reward, frozen).value, scores.value[1:2])


@pytest.mark.parametrize("scorer", [MotionScorer(), TemporalConsistency()])
def test_what_cannot_be_judged_is_invalid_or_an_error(scorer):
    broken = ball(1.0)
    broken[4, 0, 0, 0] = math.nan
    scores = score_safely(
        scorer, [Sample(video=v) for v in (broken, ball(1.0), ball(1.0)[:1])], [Prompt("")] * 3
    )
    assert scores.valid.tolist() == [False, True, False]
    with pytest.raises(ContractError, match=r"`Sample.video` must be \[F, 3, H, W\]"):
        score_safely(scorer, [Sample(image=torch.zeros(3, 8, 8))], [Prompt("")])


@pytest.mark.parametrize(
    "options, words",
    [({"enough": 0.001}, "`floor` and `enough`"), ({"lag": 0}, "`lag`"), ({"pairs": 0.5}, "`pairs`"),
     ({"share": 0.0}, "`share`"), ({"side": 8}, "`side`")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        build_scorer({"name": "motion", **options})
