"""The texts of a report: a question, and under it the answers before and after, side by side."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unirl_env.report.gallery import data_uri
from unirl_env.samples_folder import load_questions, load_texts, question_pictures

__all__ = ["answers", "folded", "printable"]

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


def answers(
    columns: Mapping[str, tuple[Path, Mapping[str, Any]]], reward: str = "reward", most: int = 8
) -> str:
    """A card for each prompt with the answers of each state of the policy in columns.

    Args:
        columns: `label -> (folder of samples, row of evaluation.jsonl)`, from left to right.
        reward: The reward that is written above each answer.
        most: Cards at most; always the first ones, so that nobody has picked.
    """
    folder, first = next(iter(columns.values()))
    texts = {label: load_texts(folder) for label, (folder, _) in columns.items()}
    if not texts[next(iter(columns))]:
        return ""
    questions, cards = load_questions(folder), []
    for prompt, name in enumerate(first["prompts"][:most]):
        asked = questions.get(prompt, {"text": name, "answer": None})
        rows = [
            [
                (label, texts[label].get((prompt, n)), _value(row, reward, prompt, n))
                for label, (_, row) in columns.items()
            ]
            for n in range(first["samples"])
        ]
        cards.append(
            f'<article class="card question">{_question(asked, question_pictures(folder, prompt))}'
            f"{_pair(rows[0])}{_more(rows[1:])}</article>"
        )
    return f'<div class="questions">{"".join(cards)}</div>'


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
    images = []
    for path in pictures:
        uri, small = data_uri(path)
        kind = ' class="pixels"' if small else ""
        images.append(f'<img{kind} src="{uri}" alt="" loading="lazy">')
    shown = f'<div class="seen">{"".join(images)}</div>' if images else ""
    expected = asked["answer"]
    wanted = "" if expected is None else f'<div class="expected"><i>expected</i>{folded(expected)}</div>'
    return f'<div class="ask">{shown}<div class="words">{folded(asked["text"])}{wanted}</div></div>'


def _pair(row: Sequence[tuple[str, Mapping[str, Any] | None, float | None]]) -> str:
    base = row[0][2]
    cells = "".join(
        _answer(label, text, value, base if i else None) for i, (label, text, value) in enumerate(row)
    )
    return f'<div class="pair">{cells}</div>'


def _answer(label: str, text: Mapping[str, Any] | None, value: float | None, base: float | None) -> str:
    score = "failed" if value is None else f"{value:.2f}"
    kind = "flat" if value is None or base is None or value == base else "up" if value > base else "down"
    facts = []
    if text is not None and text["tokens"] is not None:
        facts.append(f"{text['tokens']:,} token{'' if text['tokens'] == 1 else 's'}")
    if text is not None and text["truncated"]:
        facts.append("cut off")
    said = '<div class="said none">not saved</div>' if text is None else folded(text["text"])
    return (
        f'<div class="answer {html.escape(label)}"><p class="about"><b>{html.escape(label)}</b>'
        f'<span class="gain {kind}">{score}</span><span>{", ".join(facts)}</span></p>{said}</div>'
    )


def _more(rows: Sequence[Sequence[tuple[str, Mapping[str, Any] | None, float | None]]]) -> str:
    """The further samples of a prompt, folded, with the mean reward of each column."""
    if not rows:
        return ""
    means = []
    for column in zip(*rows, strict=True):
        known = [value for _, _, value in column if value is not None]
        means.append(f"{html.escape(column[0][0])} {sum(known) / len(known):.2f}" if known else "failed")
    count = "another answer" if len(rows) == 1 else f"{len(rows)} more answers"
    return (
        f'<details class="others"><summary>{count} <span>{", ".join(means)}</span></summary>'
        f"{''.join(map(_pair, rows))}</details>"
    )


def _value(row: Mapping[str, Any], reward: str, prompt: int, number: int) -> float | None:
    return row["values"][reward][prompt * row["samples"] + number]
