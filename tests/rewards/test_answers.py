"""Reading answers out of texts that a model wrote, whatever it wrote."""

import time

import pytest

from unirl_env.errors import ContractError
from unirl_env.rewards.texts.answers import expected_answers, final_part, last_boxed, last_expression
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


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so 2 + 3 = 5", "5"),
        ("#### 72", "72"),
        ("it costs $18.", "18"),
        ("it costs $18 and $20 in all, no more.", "20"),
        ("we earn $5 and lose 3$ a day", "3"),
        (r"hence $\frac{3}{4}$.", r"\frac{3}{4}"),
        (r"hence \frac{3}{4}", r"\frac{3}{4}"),
        (r"hence \(x + 1\)", "x + 1"),
        ("hence \\[\n\\pi\n\\]", r"\pi"),
        (r"it is 2\sqrt{3}", r"2\sqrt{3}"),
        (r"$x = 5$, which is what $x$ had to be", "x = 5"),
        ("1,234.50 people", "1,234.50"),
        ("12, 13, 14,", "14"),
        ("about -7", "-7"),
        ("about \u22127", "\u22127"),
        ("about .5", ".5"),
        ("so...5", "5"),
        ("3/4 of it", "3/4"),
        ("50 % of it", "50 %"),
        ("50 percent of it", "50 percent"),
        ("100m2 of H2O", "100"),
        ("no number", None),
        ("", None),
    ],
)
def test_the_last_number_or_expression(text, answer):
    assert last_expression(text) == answer


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
    last_expression(text)
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("answer", "found"),
    [("5", ("5",)), (" 5 ", ("5",)), (5, ("5",)), (0, ("0",)), (0.5, ("0.5",)), (["a", 2], ("a", "2"))],
)
def test_expected_answers(answer, found):
    assert expected_answers(Prompt("p", metadata={"answer": answer}), "answer") == found


@pytest.mark.parametrize("answer", [None, "", "  ", [], [""], ["a", None], True, {"a": 1}, b"5"])
def test_an_answer_that_is_none_names_the_prompt(answer):
    with pytest.raises(ContractError, match=r"metadata\['answer'\].*'How many\?'.*try the option `key`"):
        expected_answers(Prompt("How many?", metadata={"answer": answer}), "answer")
    with pytest.raises(ContractError, match=r"which has \['answer'\]"):
        expected_answers(Prompt("p", metadata={"answer": "5"}), "solution")
