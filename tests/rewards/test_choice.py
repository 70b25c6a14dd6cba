"""Letters of multiple choice, in all the ways that models write them."""

import time

import pytest
import torch

from unirl_env.errors import ConfigError, ContractError
from unirl_env.rewards import ChoiceScorer
from unirl_env.rewards.texts.choice import chosen_letter
from unirl_env.types import Prompt, Sample


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("b", "B"), ("b.", "B"), ("(B)", "B"), ("(b)", "B"), ("[B]", "B"), ("B.", "B"),
        ("B) red", "B"), ("**B**", "B"), ("answer: B", "B"), ("Answer: b", "B"), ("ANSWER B", "B"),
        ("The answer is B.", "B"), ("**Answer:** B", "B"), ("The answer is (B), not (C).", "B"),
        ("the correct option is b)", "B"), ("Answer: option B", "B"), ("Answer: $\\boxed{B}$", "B"),
        (r"\boxed{b}", "B"), (r"\boxed{\text{(B)}}", "B"), (r"\boxed{B. red}", "B"),
        (r"answer: A \boxed{B}", "B"), (r"\boxed{A} \boxed{B}", "B"),
        (r"\boxed{5} so the answer is B", "B"), (r"\boxed{A", "A"), ("Answer: A. No. Answer: B", "B"),
        ("(A) is wrong, (B) is right", "B"), ("A is wrong, so B", "B"), ("I think it is B", "B"),
        ("B. I am sure.", "B"), ("A dog barks", None), ("It is B, a dog", "B"),
        ("the answer is a dog", None), ("the answer is A dog", "A"), ("Answer: $B$", "B"),
        ("<think>answer: A</think> B", "B"), ("answer: B</think>", None), ("It's Bob's", None), ("", None),
        ("K", None), ("(K) or (B)", "B"), ("vitamin-C", None), ("ABC", None), ("\u0411", None),
        ("答案: B", "B"), ("答案是\uff08B\uff09", "B"), ("\uff22", None), ("I", "I"), ("A", "A"),
        ("answer is I.", "I"), ("x" * 99, None),
    ],
)  # fmt: skip
def test_the_letter_that_a_text_picks(text, letter):
    assert chosen_letter(text) == letter


def score(texts, answer, **options):
    prompt = Prompt("p", metadata={"answer": answer})
    return ChoiceScorer(**options)([Sample(text=text) for text in texts], [prompt] * len(texts))


@pytest.mark.parametrize("answer", ["B", "b", "(B)", "B. red", ["A", "B"]])
def test_the_expected_letter_may_be_written_in_many_ways(answer):
    scores = score(["(B)", "C", "none"], answer)
    assert scores.value.tolist() == [1.0, 0.0, 0.0]
    assert scores.parts["parsed"].tolist() == [1.0, 1.0, 0.0]


def test_no_letter_may_be_left_out():
    scores = score(["(B)", "none"], "B", unparsable="invalid")
    assert scores.valid.tolist() == [True, False] and scores.parts["parsed"].tolist() == [1.0, 0.0]


def test_only_the_letters_of_the_task_are_choices():
    assert score(["B or C"], "B", letters="AB").value.tolist() == [1.0]
    with pytest.raises(ContractError, match=r"must be one of the letters AB, got 'C' for the prompt 'p'"):
        score(["B"], "C", letters="AB")


def test_mistakes_are_named():
    for options, words in (({"letters": "abc"}, "`letters`"), ({"unparsable": "no"}, "`unparsable`")):
        with pytest.raises(ConfigError, match=words):
            ChoiceScorer(**options)
    with pytest.raises(ContractError, match="for the prompt 'p'"):
        score(["B"], "")
    with pytest.raises(ContractError, match="try the reward `exact`"):
        score(["B"], "seven")
    with pytest.raises(ContractError, match="for the reward `choice`, got None"):
        score([None], "B")


@pytest.mark.parametrize(
    "piece", ["answer", "answer ", "answer: ", "(", "( ", "A", "A ", "\\boxed{", "*", " ", "a "]
)
def test_long_texts_are_read_in_linear_time(piece):
    began = time.process_time()
    chosen_letter(piece * (200_000 // len(piece)))
    assert time.process_time() - began < 5


def test_scores_are_finite_for_any_text():
    texts = [chr(code) * 3 for code in range(0, 0x3000, 7)]
    assert torch.isfinite(score(texts, "B").value).all()
