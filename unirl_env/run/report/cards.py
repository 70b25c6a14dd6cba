"""The samples of a report, before and after: what was drawn, texts, and texts with what was drawn of them."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unirl_env.media.frames import evenly
from unirl_env.run.record.samples import (
    drawn_paths,
    further_pictures,
    load_latents,
    load_questions,
    load_texts,
    question_pictures,
)
from unirl_env.run.report.shown import FILM, LARGEST, is_clip, seen, shown


def gallery(
    columns: Mapping[str, tuple[Path, Mapping[str, Any]]],
    reward: str = "reward",
    most: int = 8,
    each: int | None = None,
    largest: int = LARGEST,
) -> str:
    """A card for each prompt with a row of pictures or clips for each state of the policy.

    Args:
        columns: `label -> (folder of samples, row of evaluation.jsonl)`, in the order of the rows of a card.
        reward: The reward that is written under each picture.
        most: Cards at most; always the first ones, so that nobody has picked.
        each: Samples of a prompt at most, the first ones; their mean is that of what is shown.
        largest: Side in pixels from which pictures are scaled down.
    """
    label, (_, first) = next(iter(columns.items()))
    found = {name: drawn_paths(folder) for name, (folder, _) in columns.items()}
    if not found[label]:
        return ""
    samples, cards = first["samples"], []
    numbers = range(samples if each is None else min(samples, each))
    for prompt, text in enumerate(first["prompts"][:most]):
        strips = []
        for name, (_, row) in columns.items():
            values = row["values"][reward]
            cells = "".join(
                _cell(found[name].get((prompt, n)), _score(values[prompt * samples + n]), largest)
                for n in numbers
            )
            scores = [values[prompt * samples + n] for n in numbers]
            strips.append(
                f'<div class="strip{_kind(name)}"><div class="label">{html.escape(name)}'
                f"<b>{_mean(scores)}</b></div>"
                f'<div class="cells" style="--n:{min(len(numbers), 8)}">{cells}</div></div>'
            )
        cards.append(
            f'<article class="card prompt"><p class="text">{html.escape(_short(text))}</p>'
            f"{seen(question_pictures(columns[label][0], prompt))}{''.join(strips)}</article>"
        )
    return f'<div class="gallery">{"".join(cards)}</div>'


def film(
    pictures: Path,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    most: int = 6,
    show: Callable[[Path, int, str], str] | None = None,
) -> str:
    """One picture or clip per prompt and evaluation: how the same seed changed over the run.

    Args:
        pictures: The folder of all evaluations.
        name: The prompt set.
        rows: Its rows of evaluation.jsonl.
        most: Prompts at most.
        show: What stands in each place as HTML, by folder, prompt and reward; by default the picture or clip.
    """
    chosen = evenly(rows, 10)
    frames = [(row, pictures / f"{row['iteration']:06d}" / name) for row in chosen]
    if len(frames) < 3 or not any(drawn_paths(folder) for _, folder in frames):
        return ""
    head = "".join(f"<th>{row['iteration']}</th>" for row, _ in frames)
    show, lines = show or _first, []
    for prompt, text in enumerate(chosen[0]["prompts"][:most]):
        scores = [_score(row["values"]["reward"][prompt * row["samples"]]) for row, _ in frames]
        cells = "".join(
            f"<td>{show(folder, prompt, score)}</td>"
            for (_, folder), score in zip(frames, scores, strict=True)
        )
        lines.append(f'<tr><th class="text">{html.escape(_short(text, 60))}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table class="film"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def scatter(before: Path, after: Path, size: int = 360, title: str = "Samples") -> str:
    """Latents of two numbers as two clouds of points, for models that draw no pictures."""
    clouds = {"before": load_latents(before), "after": load_latents(after)}
    points = {k: v.flatten(1) for k, v in clouds.items() if v is not None and v[0].numel() == 2}
    if len(points) < 2:
        return ""
    reach = max(float(cloud.abs().max()) for cloud in points.values()) * 1.1 or 1.0
    marks = "".join(
        f'<circle class="{name}" r="3.2" cx="{size / 2 * (1 + x / reach):.1f}" '
        f'cy="{size / 2 * (1 - y / reach):.1f}"/>'
        for name, cloud in points.items()
        for x, y in cloud.tolist()
    )
    return (
        f'<figure class="chart scatter"><figcaption><h3>{html.escape(title)}</h3><div class="legend">'
        f'<span class="key second">before</span><span class="key main">after</span></div></figcaption>'
        f'<svg viewBox="0 0 {size} {size}"><line class="grid" x1="0" x2="{size}" y1="{size / 2}" '
        f'y2="{size / 2}"/><line class="grid" y1="0" y2="{size}" x1="{size / 2}" x2="{size / 2}"/>'
        f"{marks}</svg></figure>"
    )


def _first(folder: Path, prompt: int, score: str) -> str:
    path = drawn_paths(folder).get((prompt, 0))
    return _cell(path, score, LARGEST if path is None else _in_a_film(path))


def _score(value: float | None) -> str:
    return "failed" if value is None else f"{value:.2f}"


def _cell(path: Path | None, score: str, largest: int = LARGEST) -> str:
    if path is None:
        return f'<div class="cell missing"><span>{score}</span></div>'
    return f'<div class="cell">{shown(path, largest)}<span>{score}</span></div>'


def _in_a_film(path: Path) -> int:
    """The side from which it is scaled down there."""
    return FILM if is_clip(path) else LARGEST


def _kind(label: str) -> str:
    """The class of a state of the policy; names that people give are none, or they might mean something."""
    return f" {label}" if label in ("before", "after") else ""


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.2f}" if known else "-"


def _short(text: str, most: int = 160) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


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
    return cards(columns, lambda label, prompt, number, text: _text(text), reward, most)


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


def _text(text: Text | None) -> str:
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
        f'<div class="answer{_kind(label)}"><p class="about"><b>{html.escape(label)}</b>'
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


MODES = ("pe", "unified_model")
"""Modes whose texts are meant to become pictures, even where none of them did."""
EXCERPT = 90
"""Characters of a text that stand under its picture in a film."""
SMALL = 200
"""Side in pixels of pictures that share the place of one."""


def are_drawn(folders: Sequence[Path], mode: str = "") -> bool:
    """Whether the samples are texts with pictures, and not one of both alone."""
    texts = any(load_texts(folder) for folder in folders)
    return texts and (mode in MODES or any(drawn_paths(folder) for folder in folders))


def drawn(columns: Columns, reward: str = "reward", most: int = 8) -> str:
    """A card for each prompt: the request, and the text and picture of each state of the policy in columns.

    Args:
        columns: The states.
        reward: The reward that is written above each sample.
        most: Cards at most; always the first ones, so that nobody has picked.
    """
    pictures = {label: drawn_paths(folder) for label, (folder, _) in columns.items()}
    further = {label: further_pictures(folder) for label, (folder, _) in columns.items()}

    def show(label: str, prompt: int, number: int, text: Text | None) -> str:
        first = pictures[label].get((prompt, number))
        others = further[label].get((prompt, number), []) if first is not None else []
        words = folded(text["text"]) if text is not None else '<div class="said none">not saved</div>'
        if others:
            images = "".join(shown(path, SMALL) for path in [first, *others])
            return f'<div class="drawn several"><div class="pictures">{images}</div>{words}</div>'
        picture = _none(text) if first is None else f'<div class="picture">{shown(first)}</div>'
        return f'<div class="drawn">{picture}{words}</div>'

    return cards(columns, show, reward, most, "sample")


def drawn_film(pictures: Path, name: str, rows: Sequence[Mapping[str, Any]], most: int = 6) -> str:
    """One sample per prompt and evaluation: how the text and the picture of one seed changed over the run."""

    def show(folder: Path, prompt: int, score: str) -> str:
        path, text = drawn_paths(folder).get((prompt, 0)), load_texts(folder).get((prompt, 0))
        picture = _none(text) if path is None else shown(path, _in_a_film(path))
        words = " ".join(printable(text["text"]).split()) if text is not None else ""
        excerpt = words if len(words) <= EXCERPT else f"{words[: EXCERPT - 1]}…"
        return (
            f'<div class="cell">{picture}<span>{score}</span></div>'
            f'<div class="written" dir="auto">{html.escape(excerpt)}</div>'
        )

    return film(pictures, name, rows, most, show)


def _none(text: Text | None) -> str:
    """The place of a picture that was not drawn, with the reason."""
    if text is None:
        reason = "not saved"
    elif text["truncated"]:
        reason = "cut off before it"
    elif not text["text"].strip():
        reason = "nothing was written"
    else:
        reason = "ended without one"
    return f'<div class="picture none"><b>no picture</b>{reason}</div>'
