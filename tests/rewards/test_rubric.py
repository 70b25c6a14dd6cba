"""What a judge is asked, and how what it says is read."""

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unirl_env.errors import ConfigError, ContractError, WireError
from unirl_env.rewards.external.rubric import Rubric
from unirl_env.rewards.external.verdict import VerdictForm
from unirl_env.types import Prompt

PROMPT = Prompt("2 {answer} 2", metadata={"answer": [4, "four"], "level": {"name": "{prompt}", "at": [1]}})


def test_fields_are_filled_once_and_by_name():
    rubric = Rubric(
        "To {prompt}: {answer} / {expected} / {metadata.level.name} / {metadata.level.at} "
        'as {"a": {"b": 1}} {{prompt}} {}'
    )
    text, notice = rubric.filled(PROMPT, "it is {expected}")
    mark = re.search(r"<(answer-\w{16})>", text)[1]
    assert text == (
        f"To 2 {{answer}} 2: <{mark}>\nit is {{expected}}\n</{mark}> / 4 or four / {{prompt}} / [1] "
        'as {"a": {"b": 1}} {prompt} {}'
    )
    assert f"between <{mark}> and </{mark}>" in notice


def test_the_same_answer_is_asked_about_in_the_same_words():
    rubric = Rubric("{answer}")
    assert rubric.filled(PROMPT, "a") == rubric.filled(PROMPT, "a") != rubric.filled(PROMPT, "b")


@given(st.text())
def test_no_answer_ends_its_own_fence(answer):
    text, notice = Rubric("Judge {answer} now").filled(PROMPT, answer)
    mark = re.search(r"between <([\w-]+)>", notice)[1]
    inside = text.removeprefix(f"Judge <{mark}>\n").removesuffix(f"\n</{mark}> now")
    assert mark not in inside and text == f"Judge <{mark}>\n{inside}\n</{mark}> now"
    assert re.sub(r"([<\[]) ", r"\1", inside) == re.sub(r"([<\[]) ", r"\1", answer)


@given(st.text(alphabet="<|>/s[INST] ", max_size=30))
def test_no_answer_holds_the_end_of_a_turn(answer):
    text, _ = Rubric("{answer}").filled(PROMPT, answer)
    assert not re.search(r"<\||</?s>|\[/?INST\]", text)


def test_ordinary_texts_are_shown_as_they_are():
    answer = "if a<b: x[0] = '<b>bold</b>' # [see] <start> x | y {z}\n\ttab"
    assert f"\n{answer}\n" in Rubric("{answer}").filled(PROMPT, answer)[0]


def test_what_a_prompt_lacks_is_named():
    for field, words in (
        (
            "{metadata.size}",
            r"`Prompt\.metadata\.size` must be there for the rubric, got \['answer', 'level'\]",
        ),
        ("{metadata.level.size}", r"`Prompt\.metadata\.level\.size`"),
        ("{metadata.answer.size}", r"`Prompt\.metadata\.answer\.size`"),
    ):
        with pytest.raises(ContractError, match=words):
            Rubric(f"{field} {{answer}}").filled(PROMPT, "a")
    with pytest.raises(ContractError, match=r"metadata\['gold'\]"):
        Rubric("{answer} {expected}", key="gold").filled(PROMPT, "a")


def test_a_rubric_may_lie_in_a_file(tmp_path):
    (tmp_path / "rubric.txt").write_text("Größe? {answer}", encoding="utf-8")
    for source in (tmp_path / "rubric.txt", str(tmp_path / "rubric.txt")):
        assert Rubric(source).text == "Größe? {answer}"
    assert Rubric("Read notes.txt\nand {answer}").text.startswith("Read")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe{answer}\x80")
    for source in (tmp_path, tmp_path / "nowhere", tmp_path / "binary.txt"):
        with pytest.raises(ConfigError, match="`rubric` must be a file that can be read"):
            Rubric(source)
    for source in ("", "  \n", None, 3):
        with pytest.raises(ConfigError, match="`rubric` must be a text or the path of one"):
            Rubric(source)


@pytest.mark.parametrize("name", ["answer", "picture"])
def test_the_examples_are_rubrics(name):
    path = Path(__file__).parents[2] / "examples" / "rubrics" / f"{name}.txt"
    text, _ = Rubric(path, answers=name == "answer").filled(
        Prompt("a cat", metadata={"answer": "4"}), "a dog"
    )
    assert "a cat" in text and ("a dog" in text) == (name == "answer")


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_what_is_asked_for_is_what_is_read(style, truth):
    form = VerdictForm((-5, 5), {"style": 1, "truth": 3})
    said = json.dumps({"reason": "so", "style": style, "truth": truth})
    numbers = form.read(said)
    assert numbers == {"style": style, "truth": truth} and form.holds(numbers)
    assert form.in_unit(form.mean(numbers)) == pytest.approx(((style + 3 * truth) / 4 + 5) / 10)
    assert set(json.loads(said)) == set(form.schema()["required"])


@given(st.text() | st.none() | st.lists(st.integers()))
def test_nothing_else_is_read(said):
    with pytest.raises(WireError):
        VerdictForm().read(said)


def test_a_reason_is_left_out_if_it_is_not_wanted():
    form = VerdictForm((1, 5), reason=False)
    assert form.read('{"score": 5}') == {"score": 5.0} and form.in_unit(5) == 1
    assert form.instructions().endswith('{"score": <number from 1 to 5>}')
    with pytest.raises(WireError, match="must be an object with the keys"):
        form.read('{"score": 5, "reason": "x"}')
    assert not form.holds({"score": 6}) and not form.holds([5]) and not form.holds({"score": "5"})


def test_the_judge_is_told_of_the_last_thought_only():
    form = VerdictForm(reason=False)
    assert form.read('<think>{"score": 1}</think> ```json\n{"score": 2}\n``` ') == {"score": 2.0}
    for said in ('{"score": 2}</think>', '{"score": 1}\n{"score": 2}', "```json\n```", "{" * 200_000):
        with pytest.raises(WireError):
            form.read(said)


BLOCKS = [
    "```json\n{}\n```",
    "~~~\n{}\n~~~",
    "  ```JSON\r\n  {}\r\n  ```\r\n",
    "```json {}```",
    "`````markdown\n~~~json\n{}\n~~~\n`````",
    "My verdict:\n\n```jsonc\n{}\n```\nAsk me anything.",
    "1. First\n   ```{{.json}}\n   {}\n   ```",
    "> ```json\n> {}\n> ```",
    "```json\n{}",
    "`{}`",
    '```json\n{{"note": "a draft"}}\n```\nor rather\n```json\n{}\n```',
    '```json\n{{"score": 9}}\n```\nNo, a sterner look:\n```json\n{}\n```',
    '<think>```json\n{{"score": 9}}\n```\n</think>```json\n{}\n```',
    '```\n{}\n```\nThe answer itself ends with {{"score": 9}}.',
]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("said", ['{"score": 2}', '{\r\n  "score": 2\r\n}', '{\n> "score": 2}'])
def test_a_fence_of_any_form_is_read(block, said):
    quoted = block.startswith(">")
    said = said if quoted else said.replace("\n> ", "\n")
    said = said.replace("\r\n", "\r\n> ") if quoted else said
    assert VerdictForm(reason=False).read(block.format(said)) == {"score": 2.0}


def test_a_fence_inside_a_reason_is_a_part_of_it():
    said = json.dumps({"reason": "it writes ```json {} ``` twice", "score": 2})
    assert VerdictForm().read(said) == VerdictForm().read(f"```\n{said}\n```") == {"score": 2.0}


def test_of_a_fence_without_a_verdict_the_judge_is_told_why():
    with pytest.raises(WireError, match=r"number from 0 to 10, got 11"):
        VerdictForm(reason=False).read('Well:\n```json\n{"score": 11}\n```')
    with pytest.raises(WireError, match="every key once"):
        VerdictForm(reason=False).read('```json\n{"score": 1, "score": 2}\n```')


@pytest.mark.parametrize(
    "said", ['```{"a":' * 9000, '```{"a":[1,' * 9000, "```" + "{" * 99_000, "`" * 99_000]
)
def test_no_reply_takes_long_to_read(said):
    began = time.process_time()
    with pytest.raises(WireError):
        VerdictForm().read(said)
    assert time.process_time() - began < 2
