"""GenEval's rules on given detections and on drawings of the embedded world."""

import json
import logging
import math

import gymnasium as gym
import numpy as np
import pytest
import torch

from unirl_env.errors import ConfigError, ContractError
from unirl_env.prompts import shapes
from unirl_env.rewards import build_scorer
from unirl_env.rewards.pictures.detections import Detection, relations
from unirl_env.rewards.pictures.geneval import GenEvalScorer
from unirl_env.rewards.pictures.shapes_scorers import ShapesScorer
from unirl_env.types import Prompt, Sample

BENCH, CAT = {"class": "bench", "count": 1}, {"class": "cat", "count": 1}
NAN = math.nan


def one(label, x=50.0, y=50.0, *, colour="red", score=0.95, side=10.0):
    return Detection(label, score, (x - side / 2, y - side / 2, x + side / 2, y + side / 2), colour=colour)


def said(detections, include=(), exclude=(), **options):
    """The scores of one picture in which `detections` are found."""
    tag = options.pop("tag", "any")
    scorer = GenEvalScorer(lambda pictures: [list(detections)] * len(pictures), **options)
    wish = {"tag": tag, "include": list(include), "exclude": list(exclude)}
    return scorer([Sample(image=torch.zeros(3, 100, 100))], [Prompt("p", metadata=wish)])


def shown(scores):
    return [scores.parts[name].item() for name in ("strict", "soft", "object", "count", "colour", "position")]


def same(found, expected):
    return found == pytest.approx(expected, nan_ok=True)


# The rules, by hand


def test_an_object_is_there_or_not():
    assert same(shown(said([one("bench")], [BENCH])), [1, 1, 1, NAN, NAN, NAN])
    assert same(shown(said([one("cat")], [BENCH])), [0, 0, 0, NAN, NAN, NAN])
    assert same(shown(said([one("cat"), one("bench")], [BENCH, CAT])), [1, 1, 1, NAN, NAN, NAN])
    assert same(shown(said([one("cat")], [BENCH, CAT])), [0, 0.5, 0.5, NAN, NAN, NAN])


@pytest.mark.parametrize(("number", "strict", "count"), [(0, 0, 0), (2, 0, 2 / 3), (3, 1, 1), (6, 0, 0.5)])
def test_numbers_are_at_least_what_is_included_and_less_than_what_is_excluded(number, strict, count):
    scores = said([one("cat")] * number, [{"class": "cat", "count": 3}], [{"class": "cat", "count": 4}])
    assert scores.parts["strict"].item() == strict
    assert scores.parts["count"].item() == pytest.approx(count)
    open_ended = said([one("cat")] * number, [{"class": "cat", "count": 3}])
    assert open_ended.parts["strict"].item() == float(number >= 3)


def test_what_must_not_be_there():
    assert same(shown(said([one("bench")], [BENCH], [CAT])), [1, 1, 1, NAN, NAN, NAN])
    assert same(shown(said([one("bench"), one("cat")], [BENCH], [CAT])), [0, 0.5, 0.5, NAN, NAN, NAN])


def test_all_of_the_surest_objects_must_have_the_colour():
    red = [{"class": "cat", "count": 2, "color": "red"}]
    cats = [one("cat", score=0.9), one("cat", score=0.8, colour="blue"), one("cat", score=0.7)]
    assert same(shown(said(cats, red)), [0, (1 + 1 + 0.5) / 3, 1, 1, 0.5, NAN])
    assert said(cats[:1] + cats[2:], red).parts["strict"].item() == 1
    assert said(cats[:1], red).parts["colour"].item() == 0.5


def test_two_classes_keep_their_colours_apart():
    wish = [{"class": "cat", "count": 1, "color": "red"}, {"class": "bench", "count": 1, "color": "blue"}]
    right = [one("cat"), one("bench", colour="blue")]
    swapped = [one("cat", colour="blue"), one("bench")]
    assert said(right, wish).parts["strict"].item() == 1
    assert same(shown(said(swapped, wish)), [0, 0.5, 1, NAN, 0, NAN])


@pytest.mark.parametrize("relation", ["left of", "right of", "above", "below"])
def test_positions_are_relative_to_the_earlier_clause(relation):
    dx, dy = shapes.RELATIONS[relation]
    wish = [CAT, {**BENCH, "position": [relation, 0]}]
    cat = one("cat")
    near, opposite = one("bench", 50 + 30 * dx, 50 + 30 * dy), one("bench", 50 - 30 * dx, 50 - 30 * dy)
    assert same(shown(said([cat, near], wish)), [1, 1, 1, NAN, NAN, 1])
    assert same(shown(said([cat, opposite], wish)), [0, 2 / 3, 1, NAN, NAN, 0])
    assert same(shown(said([near], wish)), [0, 1 / 3, 0.5, NAN, NAN, 0])


@pytest.mark.parametrize(
    ("x", "y", "found"),
    [
        (20, 0, {"right of"}),
        (-20, 0, {"left of"}),
        (20, 20, {"right of", "below"}),  # 18 / 28.3 on either axis
        (20, -9, {"right of"}),  # 7 / 21.9 is no "above"
        (2, 0, set()),  # inside the dead zone of a tenth of 10 + 10
        (0, 0, set()),
        (3.9, 0, set()),  # 1.9 / 3.9 is under a half
        (4.1, 0, {"right of"}),
    ],
)
def test_the_dead_zone_grows_with_the_objects(x, y, found):
    assert relations(one("a", 50 + x, 50 + y), one("b")) == found
    larger = relations(one("a", 50 + 10 * x, 50 + 10 * y, side=100), one("b", side=100))
    assert larger == found
    assert not found or relations(one("a", 50 + x, 50 + y), one("b"), dead_zone=0.99) != found


def test_counting_wants_sure_objects_and_a_class_has_a_most():
    cats = [one("cat", score=0.95), one("cat", score=0.5)]
    two = [{"class": "cat", "count": 2}]
    assert said(cats, two, tag="two_object").parts["strict"].item() == 1
    assert said(cats, two, tag="counting").parts["strict"].item() == 0
    assert said(cats, two, tag="counting", counting_threshold=0.4).parts["strict"].item() == 1
    assert said([one("cat")] * 30, [CAT], [{"class": "cat", "count": 17}]).parts["strict"].item() == 1
    assert said([one("cat")] * 30, [CAT], [{"class": "cat", "count": 17}], max_objects=17).value.item() == 0


def test_the_value_is_the_one_that_was_asked_for():
    wish = ([BENCH, CAT],)
    assert said([one("cat")], *wish).value.item() == 0
    assert said([one("cat")], *wish, value="soft").value.item() == 0.5


def test_strict_is_the_papers_verdict_on_any_scene():
    """Against GenEval's rules, written out as sentences, on random scenes of classes that differ."""
    rng = np.random.default_rng(0)
    verdicts = []
    for _ in range(600):
        found = [
            one(
                rng.choice(["a", "b"]),
                *rng.uniform(0, 100, 2),
                colour=rng.choice(["red", "blue"]),
                side=rng.uniform(1, 40),
            )
            for _ in range(rng.integers(6))
        ]
        first = {"class": "a", "count": int(rng.integers(1, 3))}
        second = {"class": "b", "count": 1, "color": "red", "position": ["left of", 0]}
        ours = said(found, [first, second], [{"class": "a", "count": 3}]).parts["strict"].item()
        a, b = ([thing for thing in found if thing.label == label] for label in "ab")
        paper = (
            first["count"] <= len(a) < 3
            and len(b) >= 1
            and b[0].colour == "red"
            and all("left of" in relations(b[0], thing) for thing in a[: first["count"]])
        )
        assert ours == paper
        verdicts.append(paper)
    assert 5 < sum(verdicts) < 300


# The embedded world


def drawn(captions, seed=0, size=32):
    return [Sample(image=picture) for picture in shapes.draw(captions, np.random.default_rng(seed), size)]


@pytest.mark.parametrize("kind", ["place", "count", "relation"])
def test_drawings_are_what_their_captions_say_and_not_what_others_say(kind):
    captions = shapes.all_captions(kind)[:: 1 if kind != "relation" else 17]
    scorer = build_scorer({"name": "geneval", "detector": "shapes"})
    for size in (32, 96):
        samples = drawn(captions, 1, size)
        right = scorer(samples, [Prompt(caption.text) for caption in captions])
        assert right.valid.all() and right.value.mean() > 0.98
        wrong = scorer(samples, [Prompt(caption.text) for caption in captions[1:] + captions[:1]])
        assert wrong.valid.all() and wrong.value.mean() < 0.02
        assert wrong.parts["soft"].mean() < right.parts["soft"].mean() - 0.2


def test_metadata_and_caption_ask_for_the_same():
    caption = shapes.parse_caption("a red circle left of a blue circle")
    square = {"class": "circle", "count": 1, "color": "blue"}
    circle = {"class": "circle", "count": 1, "color": "red", "position": ["left of", 0]}
    prompts = [
        Prompt(caption.text),
        Prompt("some free words", metadata={"caption": caption.text}),
        Prompt("some free words", metadata={"tag": "position", "include": [square, circle]}),
        Prompt(
            caption.text,
            metadata={"tag": "position", "include": [{**circle, "position": None}], "exclude": [square]},
        ),
    ]
    scores = GenEvalScorer()(drawn([caption] * 4), prompts)
    assert scores.value.tolist() == [1, 1, 1, 0]  # what stands in the metadata counts more than the text


def test_it_agrees_with_the_rules_of_shapes_where_nothing_is_too_much():
    captions = shapes.all_captions("place")
    rng = np.random.default_rng(3)
    order = rng.permutation(len(captions))
    samples = drawn(
        [captions[i] if rng.random() < 0.5 else caption for i, caption in zip(order, captions, strict=True)]
    )
    prompts = [Prompt(caption.text) for caption in captions]
    ours, theirs = (scorer(samples, prompts).parts["strict"] for scorer in (GenEvalScorer(), ShapesScorer()))
    assert torch.equal(ours, theirs) and 30 < ours.sum() < 60


def test_an_empty_picture_shows_nothing_and_a_broken_one_is_invalid():
    pictures = torch.full((2, 3, 32, 32), 0.5)
    pictures[1, 0, 3, 3] = torch.inf
    scores = GenEvalScorer()([Sample(image=picture) for picture in pictures], [Prompt("two red circles")] * 2)
    assert scores.valid.tolist() == [True, False]
    assert scores.value[0] == scores.parts["object"][0] == scores.parts["colour"][0] == 0


def test_alone_is_as_in_company():
    captions = shapes.all_captions("count")[:6]
    samples, prompts = drawn(captions), [Prompt(caption.text) for caption in captions[1:] + captions[:1]]
    scorer = GenEvalScorer(value="soft")
    pairs = zip(samples, prompts, strict=True)
    assert scorer.pointwise
    alone = torch.cat([scorer([sample], [prompt]).value for sample, prompt in pairs])
    assert torch.equal(scorer(samples, prompts).value, alone)


def test_it_is_the_reward_of_an_environment_whose_prompts_are_a_file_of_genevals(tmp_path):
    lines = (
        {
            "tag": "single_object",
            "include": [{"class": "circle", "count": 1}],
            "prompt": "a photo of a circle",
        },
        {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    )
    (tmp_path / "geneval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    env = gym.make_vec(
        "unirl_env:unirl/TinySD3-T2I-v0", num_envs=2, num_steps=2, array_backend="torch", group_size=1,
        info_objects=True, prompts=str(tmp_path / "geneval.jsonl"),
        scorer={"name": "geneval", "value": "soft"}, on_invalid="nan",
    )  # fmt: skip
    _, info = env.reset(seed=0)
    for _ in range(2):
        _, _, _, _, info = env.step(env.action_space.sample())
    known = [prompt.text == "a photo of a circle" for prompt in info["prompt"]]
    assert sorted(known) == [False, True] and info["scores"].valid.tolist() == known
    env.close()


# What cannot be judged


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "`metadata` has neither `include` nor `exclude`"),
        ({"include": []}, "`include` and `exclude` are empty"),
        ({"include": "bench"}, "`include` must be a list, got 'bench'"),
        ({"include": [{"count": 2}]}, "a clause must be a mapping with `class`"),
        (
            {"include": [{"class": "circle", "count": "2"}]},
            "`count` must be a whole number from 1 on, got '2'",
        ),
        ({"include": [{"class": "circle", "position": ["left of", 0]}]}, "must point to an earlier clause"),
        ({"include": [{"class": "circle", "position": ["near", 0]}]}, "`position` must be one of"),
        ({"include": [{"class": "circle", "place": "top"}]}, "`place` must be one of"),
        ({"include": [{"class": "bench"}]}, "the detector knows no class 'bench'"),
        ({"exclude": [{"class": "bench"}]}, "the detector knows no class 'bench'"),
        ({"include": [{"class": "circle", "color": "pink"}]}, "no colour is called 'pink'"),
    ],
)
def test_a_wish_that_cannot_be_judged_is_invalid_and_named(metadata, message, caplog):
    samples = drawn([shapes.parse_caption("two red circles")] * 2)
    with caplog.at_level(logging.WARNING):
        scores = GenEvalScorer()(
            samples, [Prompt("a portrait", metadata=metadata), Prompt("two red circles")]
        )
    assert scores.valid.tolist() == [False, True]
    assert message in caplog.text and "'a portrait'" in caplog.text


def test_contracts_and_settings():
    with pytest.raises(ContractError, match=r"`Sample.image` must be \[3, H, W\]"):
        GenEvalScorer()([Sample(text="a")], [Prompt("two red circles")])
    with pytest.raises(ContractError, match="A detector must answer 1 pictures, got 0 answers"):
        GenEvalScorer(lambda pictures: [])([Sample(image=torch.zeros(3, 8, 8))], [Prompt("two red circles")])
    for options, message in (
        ({"value": "hard"}, "`value` must be one of"),
        ({"dead_zone": 1}, r"`dead_zone` must be a number in \[0, 1\), got 1"),
        ({"counting_threshold": "high"}, "`counting_threshold` must be a number"),
        ({"max_objects": 0}, "`max_objects` must be a whole number from 1 on, got 0"),
        ({"detector": "yolo"}, "`detector` must be one of"),
        ({"detector": {"name": "shapes", "size": 3}}, "The options of `detector` do not fit"),
        ({"detector": 5}, "`detector` must be a name, a mapping or a callable, got int"),
        ({"colours": "hsv"}, "`colours` must be one of"),
        ({"colours": {"name": "math.sqrt", "x": 1}}, "is a function and takes no options"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_scorer({"name": "geneval", **options})
