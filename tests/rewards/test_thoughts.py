"""What of a text is thought and what is answer, and that no reward pays for a thought."""

import time

import pytest

from unirl_env.errors import ConfigError
from unirl_env.rewards import ChoiceScorer, ExactScorer, FormatScorer, MathScorer, PlanScorer, RegexScorer
from unirl_env.rewards.texts.text_answers import answer_part, final_part
from unirl_env.rewards.texts.thoughts import PUBLISHED, Thinking
from unirl_env.types import Prompt, Sample

R1 = "<|im_start|>assistant\n<think>\n"
"""The end of a prompt whose template opens the thought."""


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("12", "12"), ("<think>a</think>12", "12"), ("a</think>12", "12"), ("a</think>b</think>12", "12"),
        ("<think>a<think>b</think>12", "12"), ("<think>a</think>b<think>c</think>12", "12"),
        ("<Think>a</THINK>12", "12"), ("< think >a</ think >12", "12"), ("<think\n>a", ""),
        ("<think>so 12", ""), (" \n<think>so 12", ""), ("<THINK>12", ""), ("< think >12", ""),
        ("<think>12</think>", ""), ("<think></think>", ""), ("12 <think>but then", ""),
        ("<think>a</think>12<think>or", ""), ("<think>a[/THINK]12", ""), ("<think>a `</think>` 12", ""),
        ("Write `<think>` first. 12", "Write `<think>` first. 12"),
        ("<think>a</think>\u201c<think>\u201d it is", "\u201c<think>\u201d it is"),
        ("<think>a</think><answer> 12 </answer>", " 12 "), ("<think>a</think><answer>12", "12"),
        ("<answer>1</answer> no, <answer>12</answer> it is", "12"), ("'<answer>' 12", "'<answer>' 12"),
        ("<tool_call>12</tool_call>", "<tool_call>12</tool_call>"), ("<thinker>12", "<thinker>12"), ("", ""),
    ],
)  # fmt: skip
def test_the_answer_of_a_text(text, answer):
    assert answer_part(Sample(text=text), "x") == answer


@pytest.mark.parametrize("opening, closing", PUBLISHED)
def test_published_marks_are_known(opening, closing):
    assert final_part(f"{opening}a{closing}12") == "12"
    assert final_part(f"{opening}so 12") == ""
    assert final_part("so 12", before=f"assistant\n{opening}\n") == ""
    assert final_part(f"a{closing}12", before=f"assistant\n{opening}\n") == "12"


def test_a_prompt_may_open_the_thought():
    assert final_part("so 12", before=R1) == "" and final_part("so 12</think>13", before=R1) == "13"
    assert final_part("<think>so</think>13", before=R1) == "13", "some models say the mark once more"
    closed = "assistant\n<think>\n\n</think>\n\n"
    asked = "use <think> and </think>\nassistant\n"
    assert [final_part("12", before=before) for before in (closed, asked, "")] == ["12"] * 3
    assert (
        final_part("12", Thinking(opened=True)) == "" and final_part("12", Thinking(opened=False), R1) == "12"
    )
    assert final_part("a</think>12", Thinking(opened=True)) == "12"


def test_marks_are_a_setting():
    own = Thinking(marks=["<plan>", "</plan>"])
    assert final_part("<plan>a</plan>12", own) == "12" and final_part("<plan>12", own) == ""
    assert final_part("<think>12", own) == "<think>12"
    several = Thinking.of({"marks": [["<a>", "</a>"], ["<b>", "</b>"]]})
    assert final_part("<b>x</a>y</b>12", several) == "12"
    assert Thinking(answer=None).answer_of("<answer>12</answer>") == "<answer>12</answer>"
    assert Thinking.of(own) is own and Thinking.of(None) == Thinking()


@pytest.mark.parametrize(
    "text",
    [
        "<think>Perhaps 12, B, red; \\boxed{12}", "[THINK]answer: B or 12", "It is B, 12.\n<think>No, wait",
        "<think>red circle top left, 12, B</think>", "<|channel|>analysis<|message|>12, B",
    ],
)  # fmt: skip
def test_no_reward_pays_for_a_thought(text):
    prompt = Prompt("a red circle at the top left", metadata={"answer": "12"})
    lettered = Prompt("a red circle at the top left", metadata={"answer": "B"})
    sample = Sample(text=text, truncated=True)
    for scorer, one in [
        (MathScorer(), prompt), (ChoiceScorer(), lettered),
        (ExactScorer(), Prompt("p", metadata={"answer": text})),
        (ExactScorer(strip=["thoughts", "punctuation"]), Prompt("p", metadata={"answer": "?"})),
        (PlanScorer(), prompt), (RegexScorer("12", part="answer"), prompt),
        (RegexScorer("xyz", part="answer", expected="no_match"), prompt),
        (FormatScorer({"answer": 1}), prompt),
    ]:  # fmt: skip
        scores = scorer([sample], [one])
        assert scores.value.tolist() == [0.0] and scores.valid.tolist() == [True], scorer.name
    for scorer, one in (
        (MathScorer(unparsable="invalid"), prompt),
        (ChoiceScorer(unparsable="invalid"), lettered),
    ):
        assert scorer([sample], [one]).valid.tolist() == [False]


def test_a_setting_pays_for_open_thoughts_as_a_whole():
    whole = {"open_thought": "whole"}
    sample = Sample(text="<think>Perhaps it is 12")
    numbered = Prompt("p", metadata={"answer": "12"})
    assert MathScorer(thinking=whole)([sample], [numbered]).value.tolist() == [1.0]
    lettered = Prompt("p", metadata={"answer": "B"})
    assert ChoiceScorer(thinking=whole)([Sample(text="<think>So B")], [lettered]).value.tolist() == [1.0]
    text = "<think>red circle top left"
    drawn = Prompt("a red circle at the top left")
    assert PlanScorer(thinking=whole)([Sample(text=text)], [drawn]).value.tolist() == [1.0]
    itself = Prompt("p", metadata={"answer": text})
    assert ExactScorer(thinking=whole)([Sample(text=text)], [itself]).value.tolist() == [1.0]


def test_samples_bring_the_end_of_their_prompt():
    prompt = Prompt("p", metadata={"answer": "12"})
    samples = [Sample(text=text, before=R1) for text in ("so it is 12", "so</think>It is 12")]
    assert MathScorer()(samples, [prompt] * 2).value.tolist() == [0.0, 1.0]
    assert FormatScorer({"think": 1})(samples, [prompt] * 2).value.tolist() == [0.0, 1.0]
    closed = FormatScorer({"think": 1}, opened=False)
    assert closed(samples, [prompt] * 2).value.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"marks": "<think>"}, "`marks`"), ({"marks": ["<a>"]}, "`marks`"), ({"marks": []}, "`marks`"),
        ({"marks": ["a", "a"]}, "`marks`"), ({"marks": ["a", " "]}, "`marks`"),
        ({"opened": "yes"}, "`opened`"),
        ({"open_thought": "zero"}, "`open_thought`"), ({"answer": "<answer>"}, "`answer`"),
        ({"tags": ["a", "b"]}, "tags"), ("whole", "`thinking`"),
    ],
)  # fmt: skip
def test_mistakes_are_named(settings, word):
    for scorer in (MathScorer, ChoiceScorer, ExactScorer, PlanScorer):
        with pytest.raises(ConfigError, match=word):
            scorer(thinking=settings)
    with pytest.raises(ConfigError, match="`opened`"):
        FormatScorer(opened="yes")
    with pytest.raises(ConfigError, match="`part`"):
        RegexScorer("a", part="thought")


@pytest.mark.parametrize("piece", ["<think>", "</think>", "<", "< ", "<|", "`<think>`", "<answer>", "[", " "])
def test_long_texts_are_read_in_linear_time(piece):
    began = time.process_time()
    answer_part(Sample(text=piece * (200_000 // len(piece)), before=piece * 1000), "x")
    assert time.process_time() - began < 5
