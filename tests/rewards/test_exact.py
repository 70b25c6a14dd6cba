"""Answers compared as texts."""

import pytest

from unirl_env.errors import ConfigError, ContractError
from unirl_env.rewards import ExactScorer
from unirl_env.types import Prompt, Sample


def value(text, answer, **options):
    return ExactScorer(**options)(
        [Sample(text=text)], [Prompt("p", metadata={"answer": answer})]
    ).value.item()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("red", "red"), (" Red\n", "red"), ("dark  blue", "Dark blue"), ("STRASSE", "straße"),
        ("caf\u00e9", "cafe\u0301"), ("<think>blue</think>\nred", "red"), ("二", "二"), ("2", 2),
        ("red\u00a0hat", "red hat"), ("red", ["blue", "red"]),
    ],
)  # fmt: skip
def test_case_space_and_thoughts_do_not_count(text, answer):
    assert value(text, answer) == 1


@pytest.mark.parametrize(
    ("text", "answer"),
    [("", "red"), ("red.", "red"), ("reds", "red"), ("the red", "red"), ("red blue", "redblue"), ("-5", "5")],
)
def test_all_else_does(text, answer):
    assert value(text, answer) == 0


@pytest.mark.parametrize(
    ("strip", "text", "found"),
    [
        ([], "Red", 0), ([], "red", 1), ([], "red ", 0), (["case"], "RED", 1), (["space"], " red ", 1),
        (["punctuation"], "**red**.", 1), (["punctuation"], "\u201cred\u201d\uff01", 1),
        (["punctuation"], "-red", 0), (["punctuation"], "red%", 0), (["punctuation"], "...", 0),
        (["articles"], "The red", 1), (["boxed"], r"it is \boxed{red}, not \boxed{", 1),
        (["boxed"], "red", 1), (["boxed"], r"\boxed{blue}", 0),
        (["boxed", "case", "punctuation", "articles"], r"\boxed{(A Red!)}", 1),
        (["thoughts"], "no</think>red", 1),
    ],
)  # fmt: skip
def test_what_is_stripped_is_a_choice(strip, text, found):
    assert value(text, "red", strip=strip) == found


def test_there_are_no_parts_and_the_key_is_free():
    scores = ExactScorer("colour")([Sample(text="red")], [Prompt("p", metadata={"colour": "red"})])
    assert scores.parts == {} and scores.value.tolist() == [1.0]


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("0.0000001", 1e-7, 1.0),
        ("1e-07", 1e-7, 1.0),
        ("20000000000000000", 2e16, 1.0),
        ("42", 42.0, 1.0),
        ("42.0", 42, 1.0),
        ("0.10", 0.1, 1.0),
        ("8", [7.0, 8.0], 1.0),
        ("0.30000000000000004", 0.1 + 0.2, 1.0),
        ("42", "42.0", 0.0),
        ("0.0000002", 1e-7, 0.0),
        ("41.999999999", 42.0, 0.0),
        ("-42", 42.0, 0.0),
        ("forty-two", 42.0, 0.0),
    ],
)
def test_an_answer_that_is_a_number_has_a_value(text, answer, found):
    assert value(text, answer) == found


@pytest.mark.parametrize("answer", [True, None, float("nan"), float("inf"), [], [1.0, None]])
def test_what_is_no_answer_is_refused(answer):
    with pytest.raises(ContractError, match="must be the expected answer"):
        value("1", answer)


def test_mistakes_are_named():
    for strip in ("case", ["cases"]):
        with pytest.raises(ConfigError, match="`strip` must be a list of"):
            ExactScorer(strip=strip)
    with pytest.raises(ContractError, match="for the prompt 'p'"):
        value("red", None)
    with pytest.raises(ContractError, match="for the reward `exact`, got None"):
        value(None, "red")
