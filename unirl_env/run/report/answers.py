"""The texts of a report: a question, and under it the answers before and after, side by side."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unirl_env.run.record.samples import load_questions, load_texts, question_pictures
from unirl_env.run.report.gallery import seen

__all__ = ["Columns", "Text", "answers", "cards", "folded", "printable"]

Columns = Mapping[str, tuple[Path, Mapping[str, Any]]]
"""`label -> (folder of samples, row of evaluation.jsonl)`, from left to right."""
Text = Mapping[str, Any]
Shown = tuple[str, Text | None, str, float | None]
"""One sample: its label, its text, what stands in its place, its reward."""

LONG, LINES = 420, 8
"""Characters and lines from which a text is folded."""
HEAD, TAIL = 200, 160
"""What is seen of a folded text: its beginning, and its end, where answers stand."""
MOST = 20_000
"""Characters of a text that a page holds at most."""
# Signs that print nothing or turn the direction of what follows, and halves of signs that no file can hold.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def answers(columns: Columns, reward: str = "reward", most: int = 8) -> str:
    """A card for each prompt with the answers of each state of the policy in columns.

    Args:
        columns: The states.
        reward: The reward that is written above each answer.
        most: Cards at most; always the first ones, so that nobody has picked.
    """
    folder, _ = next(iter(columns.values()))
    if not load_texts(folder):
        return ""
    return cards(columns, lambda label, prompt, number, text: _said(text), reward, most)


def cards(
    columns: Columns,
    show: Callable[[str, int, int, Text | None], str],
    reward: str = "reward",
    most: int = 8,
    noun: str = "answer",
) -> str:
    """A card for each prompt: the request, and under it the samples of each state of the policy, in columns.

    Args:
        columns: The states.
        show: What stands in a sample's place as HTML, by label, prompt, sample and text (None if not saved).
        reward: The reward that is written above each sample.
        most: Cards at most.
        noun: What a sample is called.
    """
    folder, first = next(iter(columns.values()))
    texts = {label: load_texts(folder) for label, (folder, _) in columns.items()}
    questions, found = load_questions(folder), []
    for prompt, name in enumerate(first["prompts"][:most]):
        asked = questions.get(prompt, {"text": name, "answer": None})
        rows = []
        for n in range(first["samples"]):
            row = []
            for label, (_, measured) in columns.items():
                text = texts[label].get((prompt, n))
                value = _value(measured, reward, prompt, n)
                row.append((label, text, show(label, prompt, n, text), value))
            rows.append(row)
        found.append(
            f'<article class="card question">{_question(asked, question_pictures(folder, prompt))}'
            f"{_pair(rows[0])}{_more(rows[1:], noun)}</article>"
        )
    return f'<div class="questions">{"".join(found)}</div>'


def folded(text: str) -> str:
    """A text as HTML; a long one behind its beginning and its end."""
    shown = printable(text)
    if len(shown) > MOST:
        shown = f"{shown[: MOST - HEAD]} … {shown[-HEAD:]}"
    if not shown.strip():
        return '<div class="said none">nothing</div>'
    if len(shown) <= LONG and shown.count("\n") < LINES:
        return f'<div class="said" dir="auto">{html.escape(shown)}</div>'
    excerpt = f"{shown[:HEAD].rstrip()} … {shown[-TAIL:].lstrip()}" if len(shown) > HEAD + TAIL else shown
    excerpt = " ".join(excerpt.split())
    return (
        f'<details class="fold"><summary><span class="said" dir="auto">{html.escape(excerpt)}</span>'
        f'<span class="toggle">{len(text):,} characters</span></summary>'
        f'<div class="said" dir="auto">{html.escape(shown)}</div></details>'
    )


def printable(text: str) -> str:
    """A text without signs that a page cannot show or that change how the rest of it is shown."""
    return _UNSEEN.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def _question(asked: Mapping[str, Any], pictures: Sequence[Path]) -> str:
    expected = asked["answer"]
    wanted = "" if expected is None else f'<div class="expected"><i>expected</i>{folded(expected)}</div>'
    return f'<div class="ask">{seen(pictures)}<div class="words">{folded(asked["text"])}{wanted}</div></div>'


def _said(text: Text | None) -> str:
    return '<div class="said none">not saved</div>' if text is None else folded(text["text"])


def _pair(row: Sequence[Shown]) -> str:
    base = row[0][3]
    cells = "".join(
        _answer(label, text, shown, value, base if i else None)
        for i, (label, text, shown, value) in enumerate(row)
    )
    return f'<div class="pair">{cells}</div>'


def _answer(label: str, text: Text | None, shown: str, value: float | None, base: float | None) -> str:
    score = "failed" if value is None else f"{value:.2f}"
    kind = "flat" if value is None or base is None or value == base else "up" if value > base else "down"
    facts = []
    if text is not None and text["tokens"] is not None:
        facts.append(f"{text['tokens']:,} token{'' if text['tokens'] == 1 else 's'}")
    if text is not None and text["truncated"]:
        facts.append("cut off")
    return (
        f'<div class="answer {html.escape(label)}"><p class="about"><b>{html.escape(label)}</b>'
        f'<span class="gain {kind}">{score}</span><span>{", ".join(facts)}</span></p>{shown}</div>'
    )


def _more(rows: Sequence[Sequence[Shown]], noun: str) -> str:
    """The further samples of a prompt, folded, with the mean reward of each column."""
    if not rows:
        return ""
    means = []
    for column in zip(*rows, strict=True):
        known = [value for *_, value in column if value is not None]
        means.append(f"{html.escape(column[0][0])} {sum(known) / len(known):.2f}" if known else "failed")
    count = f"another {noun}" if len(rows) == 1 else f"{len(rows)} more {noun}s"
    return (
        f'<details class="others"><summary>{count} <span>{", ".join(means)}</span></summary>'
        f"{''.join(map(_pair, rows))}</details>"
    )


def _value(row: Mapping[str, Any], reward: str, prompt: int, number: int) -> float | None:
    return row["values"][reward][prompt * row["samples"] + number]
