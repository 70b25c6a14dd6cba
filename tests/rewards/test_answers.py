"""Reading answers out of texts that a model wrote, whatever it wrote."""

import time

import pytest

from unirl_env.errors import ContractError
from unirl_env.rewards.texts.text_answers import expected_answers, final_part, last_boxed
from unirl_env.types import Prompt


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{5}", "5"),
        (r"first \boxed{5}, no, \boxed{6}.", "6"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{x = \boxed{3}}", "3"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed {7}", "7"),
        (r"\fbox{7}", "7"),
        (r"\\boxed{8}", "8"),
        (r"\boxed{5} and then \boxed{6", "5"),
        (r"\boxed{\frac{1}{2} and then \boxed{7}", "7"),
        (r"} } \boxed{5} } {", "5"),
        (r"\boxed{}", ""),
        (r"\boxed{多}", "多"),
        (r"\boxed 5", None),
        (r"boxed{5}", None),
        (r"\boxed{5", None),
        ("", None),
    ],
)
def test_the_last_box_that_is_closed(text, answer):
    assert last_boxed(text) == answer


def test_thoughts_are_no_answer():
    assert final_part("<think>5</think> 6") == " 6"
    assert final_part("a</think>b</think>c") == "c"
    assert final_part("<think>5, for ever") == ""


@pytest.mark.parametrize(
    "piece",
    ["\\boxed{", "\\boxed", "{", "}", "\\", "$", "$a ", "1", "1,", "1+", "-", "\\frac{", "\\(", "\\[", " ",
     "\x00", "</think>", "\\boxed{1}", "1 ", "$1$", "a" * 9 + " "],
)  # fmt: skip
def test_long_texts_are_read_in_linear_time(piece):
    text = piece * (200_000 // len(piece))
    began = time.process_time()
    last_boxed(text)
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("5", ("5",)),
        (" 5 ", ("5",)),
        (5, ("5",)),
        (0, ("0",)),
        (0.5, ("0.5",)),
        (1e-7, ("0.0000001",)),
        (42.0, ("42",)),
        (["a", 2], ("a", "2")),
    ],
)
def test_expected_answers(answer, found):
    assert expected_answers(Prompt("p", metadata={"answer": answer}), "answer") == found


@pytest.mark.parametrize(
    "answer", [None, "", "  ", [], [""], ["a", None], True, {"a": 1}, b"5", float("nan")]
)
def test_an_answer_that_is_none_names_the_prompt(answer):
    with pytest.raises(ContractError, match=r"metadata\['answer'\].*'How many\?'.*try the option `key`"):
        expected_answers(Prompt("How many?", metadata={"answer": answer}), "answer")
    with pytest.raises(ContractError, match=r"which has \['answer'\]"):
        expected_answers(Prompt("p", metadata={"answer": "5"}), "solution")
