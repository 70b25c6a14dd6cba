"""Plans judged by what they name."""

import pytest
import torch

from unirl_env.errors import ContractError
from unirl_env.rewards import SCORERS, PlanScorer
from unirl_env.types import Prompt, Sample

WANTED = "a red circle at the top left"


def score(*texts, caption=WANTED):
    prompts = [Prompt("a scarlet disc, upper left", metadata={"caption": caption})] * len(texts)
    return PlanScorer()([Sample(text=text) for text in texts], prompts)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("red circle top left", (1, 1, 1)),
        ("Top left: one RED circle.", (1, 1, 1)),
        ("blue circle top left", (0, 1, 1)),
        ("red square top left", (1, 0, 1)),
        ("red circle top right", (1, 1, 0)),
        ("red circle", (1, 1, 0)),
        ("red or blue circle top left", (0, 1, 1)),
        ("reddish circle top left", (0, 1, 1)),
        ("a scarlet disc, upper left", (0, 0, 0)),
        ("<think>blue square center</think>red circle top left", (1, 1, 1)),
        ("", (0, 0, 0)),
    ],
)
def test_every_aspect_must_be_named_and_no_other_of_its_kind(text, right):
    scores = score(text)
    assert tuple(scores.parts[name].item() for name in ("colour", "shape", "place")) == right
    assert scores.value.item() == pytest.approx(sum(right) / 3)


@pytest.mark.parametrize(
    ("caption", "right", "wrong"),
    [
        ("three green squares", "three green squares", "two green squares"),
        (
            "a red circle left of a blue square",
            "blue square, red circle left of",
            "red circle, blue square above",
        ),
    ],
)
def test_numbers_and_relations_stand_for_the_place(caption, right, wrong):
    assert score(right, wrong, caption=caption).value.tolist() == pytest.approx([1, 2 / 3])


def test_without_a_caption_the_prompt_is_one():
    scorer, said = PlanScorer(), Sample(text="red circle top left")
    assert scorer([said], [Prompt(WANTED)]).value.item() == 1
    unread = scorer([said, said], [Prompt("a cat"), Prompt(WANTED)])
    assert unread.valid.tolist() == [False, True] and torch.isnan(unread.value[0])


def test_it_needs_a_text():
    assert SCORERS.get("plan") is PlanScorer
    with pytest.raises(ContractError, match="text"):
        PlanScorer()([Sample(image=torch.zeros(3, 8, 8))], [Prompt(WANTED)])
