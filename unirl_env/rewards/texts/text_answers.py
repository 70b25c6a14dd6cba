"""Reading answers: what a prompt expects, and what a text says after its thoughts."""

from __future__ import annotations

import re
from typing import Any

from unirl_env.arguments.values import require
from unirl_env.errors import ContractError
from unirl_env.rewards.texts.numerals import is_numeric, plain_numeral
from unirl_env.rewards.texts.thoughts import Thinking
from unirl_env.types import Prompt, Sample

UNPARSABLE = ("zero", "invalid")
"""What an answer that cannot be read counts: nothing, or not at all."""

_USUAL = Thinking()
# Bounded repetitions only: the texts come from models, and reading one must take linear time.
_BOXES = re.compile(r"\\{1,3}(?:boxed|fbox)\s{0,9}\{|\\[\s\S]|[{}]")


def checked_rule(unparsable: str) -> str:
    """`unparsable` itself.

    Raises:
        ConfigError: If it is no rule.
    """
    require("unparsable", unparsable, unparsable in UNPARSABLE, f"one of {list(UNPARSABLE)}")
    return unparsable


def expected_answers(prompt: Prompt, key: str) -> tuple[str, ...]:
    """What `prompt.metadata[key]` accepts: a text or a number, or a list of them of which any will do.

    Numbers are given in digits, as people write them: 1e-07 is 0.0000001, and 42.0 is 42.

    Raises:
        ContractError: If the prompt has no answer, or one of another type.
    """
    found = prompt.metadata.get(key)
    answers = found if isinstance(found, list | tuple) else [found]
    texts = tuple(_as_text(answer) for answer in answers)
    if not texts or not all(texts):
        raise ContractError(
            f"`Prompt.metadata[{key!r}]` must be the expected answer, a text or a number, got {found!r} for "
            f"the prompt {prompt.id[:80]!r}, which has {sorted(prompt.metadata)}; try the option `key`."
        )
    return texts


def _as_text(answer: Any) -> str:
    if isinstance(answer, str):
        return answer.strip()
    return plain_numeral(answer) if is_numeric(answer) else ""


def answer_text(sample: Sample, name: str) -> str:
    """The text of a sample.

    Raises:
        ContractError: If it has none, or something else.
    """
    if not isinstance(sample.text, str):
        got = "None" if sample.text is None else type(sample.text).__name__
        raise ContractError(f"`Sample.text` must be a text for the reward `{name}`, got {got}.")
    return sample.text


def answer_part(sample: Sample, name: str, thinking: Thinking = _USUAL) -> str:
    """The part of a sample's text in which a reward looks for the answer; empty where there is none.

    Raises:
        ContractError: If the sample has no text.
    """
    return thinking.answer_of(answer_text(sample, name), sample.before)


def final_part(text: str, thinking: Thinking = _USUAL, before: str = "") -> str:
    """What comes after the thoughts; nothing of a text that ends in the middle of one.

    Args:
        text: What a model said.
        thinking: How thoughts are marked.
        before: The end of the prompt, which may open a thought.
    """
    return thinking.after_thoughts(text, before)


def last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}` that is closed, the inner one of two; None without any."""
    opened: list[int | None] = []
    found, begins = None, -1
    for token in _BOXES.finditer(text):
        mark = token.group()
        if mark == "{":
            opened.append(None)
        elif mark == "}":
            start = opened.pop() if opened else None
            if start is not None and start > begins:
                found, begins = text[start : token.start()], start
        elif mark.endswith("{") and "box" in mark:
            opened.append(token.end())
    return found
