"""The two rewards of the moving world: by rules, and by templates to hold out."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from degenerate_clips import things, way

from unirl_env.errors import ContractError
from unirl_env.prompts import moving
from unirl_env.rewards import MovingShapesScorer, MovingTemplateScorer, build_scorer
from unirl_env.rewards.asks import require_judgeable
from unirl_env.rewards.scoring import score_safely
from unirl_env.rewards.videos.moving_shapes import PARTS
from unirl_env.rewards.videos.moving_template import fits
from unirl_env.types import Prompt, Sample

BOTH = [MovingShapesScorer(), MovingTemplateScorer()]
RED = Prompt("a red circle moves right")


def judge(scorer, clips, *prompts):
    prompts = [Prompt(each) if isinstance(each, str) else each for each in prompts]
    return scorer([Sample(video=clip) for clip in clips], prompts * (len(clips) // len(prompts)))


def drawn(seed=0, **sizes):
    captions = moving.all_captions()
    return [caption.text for caption in captions], moving.draw(captions, np.random.default_rng(seed), **sizes)


@pytest.mark.parametrize("sizes", [{}, {"size": 64}, {"frames": 17}, {"size": 48, "frames": 5}])
def test_right_clips_score_high_and_all_others_low_by_both_rewards(sizes):
    texts, clips = drawn(**sizes)
    right, wrong = (judge(BOTH[0], clips, *asked) for asked in (texts, texts[1:] + texts[:1]))
    assert right.parts["strict"].min() == 1 and right.value.min() > 0.95
    assert wrong.parts["strict"].max() == 0 and wrong.value.max() < 0.45
    right, wrong = (judge(BOTH[1], clips, *asked) for asked in (texts, texts[1:] + texts[:1]))
    assert right.value.mean() > 0.75 and right.value.min() > 0.45
    assert wrong.value.max() < 0.01


def test_the_template_of_the_caption_fits_best_of_all():
    _, clips = drawn(seed=1)
    asked = torch.arange(72)
    best = torch.tensor([int(fits(clip)[0].flatten().argmax()) for clip in clips])
    assert torch.equal(best, asked)
    noisy = (clips + 0.1 * torch.randn(clips.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    best = torch.tensor([int(fits(clip)[0].flatten().argmax()) for clip in noisy])
    assert (best == asked).float().mean() > 0.9
    moving_fit, still_fit = fits(clips[0][:1].expand(9, -1, -1, -1))
    assert still_fit.amax() > moving_fit.amax() + 0.1


CLIPS = {
    "colour": things(32, 32, way(9), colour="blue"),
    "shape": things(32, 32, way(9), shape="square"),
    "stays": things(32, 32, way(9)[:7] + [None] * 2),
    "direction": things(32, 32, way(9)[::-1]),
    "moves": things(32, 32, way(9, end=(0.3, 0.5))),
    "smooth": things(32, 32, [(0.25 + 0.0625 * (t - 0.7 * (t % 2)), 0.5) for t in range(9)]),
}


@pytest.mark.parametrize("part", PARTS)
def test_each_part_sees_its_own_fault(part):
    parts = judge(BOTH[0], [things(32, 32, way(9)), CLIPS[part]], RED).parts
    good, bad = ({name: float(scores[i]) for name, scores in parts.items()} for i in (0, 1))
    assert all(good[each] > 0.95 for each in good)
    assert bad["strict"] == 0 and bad[part] < 0.8 and bad["partial"] < 0.97
    follow = {"stays": {"colour", "shape", "direction", "moves", "smooth"}, "moves": {"smooth", "direction"}}
    for other in set(PARTS) - {part} - follow.get(part, set()):
        assert bad[other] > 0.6, (other, bad)


def test_the_value_is_the_mean_of_partial_and_strict():
    scores = judge(BOTH[0], [things(32, 32, way(9)), *CLIPS.values()], RED)
    parts = torch.stack([scores.parts[part] for part in PARTS])
    assert torch.allclose(scores.parts["partial"], parts.mean(dim=0), atol=1e-6)
    assert torch.allclose(scores.value, (scores.parts["partial"] + scores.parts["strict"]) / 2, atol=1e-6)
    assert set(scores.parts["strict"].tolist()) == {0.0, 1.0}
    assert parts.min() >= 0 and parts.max() <= 1


def test_a_second_thing_pulsing_and_a_flickering_ground_are_faults():
    clean = things(32, 32, way(9))
    second = torch.maximum(clean, things(32, 32, [(0.5, 0.85)] * 9, "green", "square", [0.1] * 9))
    pulsing = things(32, 32, way(9), radii=[0.12 + 0.06 * (t % 2) for t in range(9)])
    bare = clean.amax(dim=1, keepdim=True) < 0.17
    ground = clean + 0.2 * (torch.arange(9) % 2)[:, None, None, None] * bare
    grain = torch.rand(9, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    grain = clean + 0.5 * grain * bare
    scores = judge(BOTH[0], [clean, second, pulsing, ground, grain], RED)
    assert scores.parts["strict"].tolist() == [1, 0, 0, 0, 0]
    assert scores.parts["stays"][1] == 0.5 and (scores.parts["smooth"][2:] < 0.3).all()
    held_out = judge(BOTH[1], [clean, second, pulsing, ground, grain], RED).value
    assert (held_out[1:] < held_out[0] - 0.02).all(), held_out


def test_more_motion_the_right_way_is_never_worth_less():
    ends = [0.25, 0.28, 0.33, 0.4, 0.5, 0.75]
    clips = [things(32, 32, way(9, end=(end, 0.5))) for end in ends]
    values = judge(BOTH[0], clips, RED).value
    assert (values.diff() >= -1e-6).all() and values[0] < 0.3 and values[-1] > 0.95
    turned = [
        things(32, 32, way(9, (0.3, 0.3), end)) for end in ((0.7, 0.3), (0.68, 0.5), (0.5, 0.68), (0.3, 0.7))
    ]
    values = judge(BOTH[0], turned, RED).parts["direction"]
    assert (values.diff() <= 0).all() and values[0] > 0.95 and values[-1] == 0


@pytest.mark.parametrize("scorer", BOTH)
def test_metadata_say_what_is_asked_before_the_text(scorer):
    clip, asked = things(32, 32, way(9)), {"colour": "red", "shape": "circle", "direction": "right"}
    prompts = [
        Prompt("a red circle moves right."),
        Prompt("something lovely", metadata=asked),
        Prompt("a clip", metadata={"caption": "A red circle moves right"}),
        Prompt("a red circle moves right", metadata={**asked, "direction": "left"}),
        Prompt("a red circle moves right", metadata={**asked, "direction": "away"}),
        Prompt("a red circle moves sideways"),
    ]
    values = judge(scorer, [clip] * 6, *prompts).value
    assert values[0] == values[1] == values[2] > 0.8 and values[3] < 0.45 and values[4:].isnan().all()
    require_judgeable(scorer, prompts[:4])
    for prompt in prompts[4:]:
        with pytest.raises(Exception, match=r"a caption of the moving world.*'a red circle moves right'"):
            require_judgeable(scorer, [prompt])


@pytest.mark.parametrize("scorer", BOTH)
def test_clips_of_any_size_are_read(scorer):
    small = things(32, 32, way(9))
    large = nnf.interpolate(small, (128, 128), mode="bilinear")
    wide = things(64, 96, way(9))
    values = judge(scorer, [small, large, wide, things(96, 64, way(9))], RED).value
    assert values.max() - values.min() < 0.08 and values.min() > 0.75, values


@pytest.mark.parametrize("scorer", BOTH)
def test_what_cannot_be_judged_is_invalid_or_an_error(scorer):
    good = things(32, 32, way(9))
    broken = good.clone()
    broken[4, 0, 3, 3] = math.nan
    scores = score_safely(scorer, [Sample(video=v) for v in (broken, good, good[:1])], [RED] * 3)
    assert scores.valid.tolist() == [False, True, False]
    with pytest.raises(ContractError, match=r"`Sample.video` must be \[F, 3, H, W\]"):
        score_safely(scorer, [Sample(image=torch.zeros(3, 8, 8))], [RED])


@pytest.mark.parametrize("scorer", BOTH)
def test_a_clip_of_nothing_scores_nothing(scorer):
    flat = torch.full((9, 3, 32, 32), 0.5)
    scores = judge(scorer, [flat, flat * 0, flat * 2], RED)
    assert scores.valid.all() and scores.value.abs().max() < 1e-6
    assert build_scorer(scorer.name).needs == ("video",)
    assert torch.equal(scorer([Sample(video=flat)], [RED]).value, scores.value[:1])
