import math

import numpy as np
import pytest
import torch

from unirl_env.errors import ContractError
from unirl_env.prompts import shapes
from unirl_env.rewards.pictures.shapes_scorers import ShapesScorer, TemplateScorer
from unirl_env.types import Prompt, Sample

PLACES, HELD_PLACES = shapes.split_captions("place")


def judge(scorer, pictures, texts):
    return scorer([Sample(image=p) for p in pictures], [Prompt(text) for text in texts])


def draw(texts, seed=0, size=32):
    captions = [shapes.parse_caption(text) for text in texts]
    return shapes.draw(captions, np.random.default_rng(seed), size)


@pytest.mark.parametrize("kind", ["place", "count", "relation"])
def test_captions_read_back_as_they_were_written(kind):
    captions = shapes.all_captions(kind)
    assert [shapes.parse_caption(c.text) for c in captions] == captions
    assert (
        len({c.text for c in captions}) == len(captions) == {"place": 90, "count": 36, "relation": 1080}[kind]
    )


@pytest.mark.parametrize(
    "text", ["", "a dog", "a red circle", "two red circle", "a pink circle at the center", "four red circles"]
)
def test_other_texts_are_not_captions(text):
    assert shapes.parse_caption(text) is None


@pytest.mark.parametrize("kind", ["place", "count", "relation"])
def test_a_tenth_is_held_out_and_apart(kind):
    train, held_out = shapes.split_captions(kind)
    assert not set(train) & set(held_out)
    assert set(train) | set(held_out) == set(shapes.all_captions(kind))
    assert len(held_out) == math.ceil(len(shapes.all_captions(kind)) / 10)
    # What is held out is the combination: every word of it is trained.
    seen = {word for c in train for word in c.text.split()}
    assert {word for c in held_out for word in c.text.split()} <= seen


@pytest.mark.parametrize("kind", ["place", "count", "relation"])
def test_right_drawings_score_high_and_wrong_ones_low_by_both_rewards(kind):
    captions = shapes.all_captions(kind)[:: 1 if kind != "relation" else 17]
    texts = [c.text for c in captions]
    pictures = shapes.draw(captions, np.random.default_rng(1))
    shifted = texts[1:] + texts[:1]
    right, wrong = (judge(ShapesScorer(), pictures, t) for t in (texts, shifted))
    assert right.parts["strict"].mean() > 0.99 and right.value.min() > 0.9
    assert wrong.parts["strict"].mean() < 0.02
    template_right, template_wrong = (judge(TemplateScorer(), pictures, t) for t in (texts, shifted))
    assert template_right.value.min() > 0.8
    assert (template_right.value > template_wrong.value).float().mean() > 0.99


@pytest.mark.parametrize(
    ("aspect", "text"),
    [
        ("colour", "a blue circle at the top left"),
        ("shape", "a red square at the top left"),
        ("position", "a red circle at the bottom right"),
        ("count", "two red circles"),
    ],
)
def test_each_aspect_sees_its_own_error_and_only_that(aspect, text):
    scores = judge(ShapesScorer(), draw(["a red circle at the top left"]), [text])
    assert scores.parts["strict"].item() == 0
    assert scores.parts[aspect].item() <= 0.5
    if aspect != "count":  # a missing object misses its colour and shape, too
        assert all(scores.parts[k].item() > 0.9 for k in {"colour", "shape", "count", "position"} - {aspect})
        assert scores.parts["partial"].item() == pytest.approx(0.75, abs=0.13)
    assert scores.value.item() == pytest.approx(
        (scores.parts["partial"] + scores.parts["strict"]).item() / 2, abs=1e-6
    )


def test_a_relation_is_read_with_its_order():
    pictures = draw(["a red circle left of a blue square"] * 2)
    scores = judge(
        ShapesScorer(),
        pictures,
        ["a blue square right of a red circle", "a blue square left of a red circle"],
    )
    assert scores.parts["strict"].tolist() == [1, 0]


@pytest.mark.parametrize("scorer", [ShapesScorer(), TemplateScorer()])
def test_pictures_of_any_size_are_read(scorer):
    texts = ["a yellow triangle at the center", "three cyan circles", "a red circle above a green square"]
    small, large = (judge(scorer, draw(texts, size=size), texts).value for size in (32, 256))
    tall = [torch.nn.functional.interpolate(p[None], (96, 48))[0] for p in draw(texts)]
    assert torch.allclose(small, large, atol=0.08)
    assert torch.allclose(small, judge(scorer, tall, texts).value, atol=0.08)


@pytest.mark.parametrize("scorer", [ShapesScorer(), TemplateScorer()])
def test_what_cannot_be_judged_is_invalid_and_not_zero(scorer):
    pictures = draw(["a red circle at the center"] * 3)
    pictures[2, 0, 3, 3] = torch.nan
    scores = judge(
        scorer, pictures, ["a photo of a dog", "a red circle at the center", "a red circle at the center"]
    )
    assert scores.valid.tolist() == [False, True, False]
    assert scores.value[1] > 0.8 and torch.isnan(scores.value[[0, 2]]).all()


@pytest.mark.parametrize("scorer", [ShapesScorer(), TemplateScorer()])
def test_an_empty_picture_scores_zero(scorer):
    flat = torch.full((1, 3, 32, 32), 0.5)
    scores = judge(scorer, flat, ["a red circle at the center"])
    assert scores.valid.all() and scores.value.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("scorer", [ShapesScorer(), TemplateScorer()])
def test_a_sample_without_a_picture_breaks_the_contract(scorer):
    with pytest.raises(ContractError, match=r"Sample\.image"):
        scorer([Sample(text="a red circle")], [Prompt("a red circle at the center")])


def test_scores_do_not_depend_on_the_batch():
    texts = [c.text for c in PLACES[:6]]
    pictures = draw(texts) + 0.1 * torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    together = judge(ShapesScorer(), pictures, texts).value
    alone = torch.cat([judge(ShapesScorer(), [p], [t]).value for p, t in zip(pictures, texts, strict=True)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("scorer", [ShapesScorer(), TemplateScorer()])
def test_a_request_is_judged_by_the_caption_that_it_brings(scorer):
    text = "a red circle at the top left"
    picture = Sample(image=draw([text])[0])
    free = Prompt("something crimson and round, please", metadata={"caption": text})
    misread = Prompt(text, metadata={"caption": "a blue square at the center"})
    said = scorer([picture] * 3, [Prompt(text), free, misread])
    assert said.valid.all()
    assert said.value[0] == said.value[1] > said.value[2] + 0.3
    unknown = scorer([picture], [Prompt(text, metadata={"caption": "a dog"})])
    assert not unknown.valid.any()
