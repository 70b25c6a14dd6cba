"""Questions are read from metadata, and answers spelled as a model may say them."""

import pytest
import torch

from unirl_env.errors import ContractError
from unirl_env.rewards.learned.vqa import Question, questions_of, spellings, token_sequences
from unirl_env.rewards.learned.vqa_reading import rows_for
from unirl_env.types import Prompt


def test_questions_come_as_mappings_or_pairs():
    listed = [
        {"question": " How many cows? ", "answer": 3, "skill": "count"},
        ["Is it red?", "Yes"],
        ("Any dogs?", False),
        ["Which colour?", ["grey", "gray"]],
    ]
    assert questions_of(Prompt("x", metadata={"vqa_list": listed}), "vqa_list") == (
        Question("How many cows?", ("3",)),
        Question("Is it red?", ("Yes",)),
        Question("Any dogs?", ("no",)),
        Question("Which colour?", ("grey", "gray")),
    )


@pytest.mark.parametrize("metadata", [{}, {"questions": None}, {"questions": []}, {"other": [["a?", "b"]]}])
def test_a_prompt_may_have_no_questions(metadata):
    assert questions_of(Prompt("x", metadata=metadata), "questions") == ()


@pytest.mark.parametrize(
    "listed",
    [
        "is it red?",
        {"question": "is it red?", "answer": "yes"},
        ["is it red?", "yes"],
        [["is it red?"]],
        [["is it red?", ""]],
        [["is it red?", []]],
        [["is it red?", ["yes", ""]]],
        [["", "yes"]],
        [[3, "yes"]],
        [{"question": "is it red?"}],
        [["is it red?", 0.5]],
    ],
)
def test_malformed_questions_break_the_contract(listed):
    with pytest.raises(
        ContractError, match=r"`Prompt.metadata\['questions'\]` must be a list of questions .*'x'"
    ):
        questions_of(Prompt("x", metadata={"questions": listed}), "questions")


def test_only_a_single_yes_or_no_has_an_opposite():
    assert Question("?", ("Yes",)).opposite == "no" and Question("?", ("no",)).opposite == "yes"
    assert Question("?", ("red",)).opposite is None and Question("?", ("yes", "sure")).opposite is None


@pytest.mark.parametrize(
    ("answer", "ways"),
    [
        ("Yes", {"Yes", "yes"}),
        ("TV", {"TV", "tv"}),
        ("three", {"three", "Three", "3"}),
        ("3", {"3", "three", "Three"}),
        ("12", {"12"}),
        ("red circle", {"red circle", "Red circle"}),
    ],
)
def test_spellings(answer, ways):
    assert set(spellings(answer)) == ways


def test_sequences_exclude_each_other():
    """One token per letter, except words of `known`."""
    known = {" yes": 900, "car": 901, "Car": 902}

    def encode(text):
        return [known[text]] if text in known else [ord(letter) for letter in text]

    letters = [tuple(map(ord, word)) for word in ("yes", "Yes")]
    assert set(token_sequences(["yes"], encode)) == {*letters, (900,)}

    def by_pieces(text):
        head = next((word for word in known if text.startswith(word)), "")
        return ([known[head]] if head else []) + [ord(letter) for letter in text[len(head) :]]

    assert set(token_sequences(["car", "cars"], by_pieces)) == {(901,), (902,)}
    assert token_sequences(["2", "two"], encode) == token_sequences(["2"], encode)


def test_the_fewest_rows_tell_every_step():
    inputs = {"input_ids": torch.zeros(1, 4)}
    short = rows_for(inputs, [(1,), (2,), (3, 4)])
    assert [row.stem for row in short] == [(3,)]
    assert set(short[0].wanted) == {(0, 1), (0, 2), (0, 3), (1, 4)}
    rows = rows_for(inputs, [(1, 2, 3), (1, 2, 4), (1, 5), (6, 7), (8,)])
    assert {row.stem for row in rows} == {(1, 2), (6,)}
    steps = [(row.stem[:read], token) for row in rows for read, token in row.wanted]
    wanted = {((), 1), ((1,), 2), ((1, 2), 3), ((1, 2), 4), ((1,), 5), ((), 6), ((6,), 7), ((), 8)}
    assert set(steps) == wanted and len(steps) == len(wanted)
