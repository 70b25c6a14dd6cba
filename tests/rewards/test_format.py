"""The form of texts: thoughts, answers and boxes."""

import pytest

from unirl_env.errors import ConfigError, ContractError
from unirl_env.rewards import FormatScorer
from unirl_env.types import Prompt, Sample


def parts(text, **options):
    scores = FormatScorer(**options)([Sample(text=text)], [Prompt("p")])
    return "".join(name[0] for name, part in scores.parts.items() if part.item()), scores.value.item()


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (r"<think>a</think> It is \boxed{5}.", "tab"),
        ("\n <think>\na\n</think>\n\\boxed{\\frac{1}{2}}", "tab"),
        ("<think></think>5", "ta"),
        ("<think>a</think>", "t"),
        ("<think>a</think> \n", "t"),
        (r"<think>\boxed{5}</think> 5", "ta"),
        (r"<think>a</think> \boxed{ }", "ta"),
        (r"<think>a</think> \boxed{5", "ta"),
        (r"a <think>a</think> \boxed{5}", "ab"),
        (r"<think><think>a</think> \boxed{5}", "ab"),
        (r"</think><think> \boxed{5}", "ab"),
        (r"<think>a</think></think> \boxed{5}", ""),
        (r"<think>a</think> \boxed{5} <think>b</think>", ""),
        (r"<think>a</think> <think> \boxed{5}", "ab"),
        (r"<THINK>a</THINK> \boxed{5}", ""),
        (r"<think>a \boxed{5}", ""),
        (r"\boxed{5}", ""),
        ("", ""),
    ],
)
def test_the_rules(text, kept):
    assert parts(text) == (kept, pytest.approx(len(kept) / 3))


def test_a_thought_that_the_prompt_opened():
    assert parts(r"a</think> \boxed{5}", opened=True)[0] == "tab"
    assert parts(r"<think>a</think> \boxed{5}", opened=True)[0] == "ab"
    assert parts("a", opened=True)[0] == ""


def test_weights_and_tags():
    text = r"<plan>a</plan> 5"
    tags = ["<plan>", "</plan>"]
    assert parts(text, tags=tags) == ("ta", pytest.approx(2 / 3))
    assert parts(text, tags=tags, weights={"think": 1, "boxed": 3}) == ("t", 0.25)
    assert parts(text, tags=tags, weights={"answer": 2.0, "boxed": 0}) == ("a", 1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": {}}, "a positive one"),
        ({"weights": {"think": 0}}, "a positive one"),
        (
            {"weights": {"thinking": 1}},
            r"must name rules of \['think', 'answer', 'boxed'\], got \['thinking'\]",
        ),
        ({"weights": {"think": -1, "boxed": 2}}, "numbers from 0 on"),
        ({"weights": {"think": "1"}}, "numbers from 0 on"),
        ({"tags": "<t>"}, "two different texts"),
        ({"tags": ["<t>", "<t>"]}, "two different texts"),
        ({"tags": ["<t>", ""]}, "two different texts"),
    ],
)
def test_mistakes_are_named(options, words):
    with pytest.raises(ConfigError, match=words):
        FormatScorer(**options)


def test_a_sample_without_text_breaks_the_contract():
    with pytest.raises(ContractError, match="for the reward `format`, got None"):
        parts(None)
