"""Texts and the pictures that came of them: what was written, and with it what was drawn."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unirl_env.run.record.samples import further_pictures, load_texts, picture_paths
from unirl_env.run.report.answers import Columns, Text, cards, folded, printable
from unirl_env.run.report.gallery import film, shown

__all__ = ["are_drawn", "drawn", "drawn_film"]

MODES = ("pe", "unified_model")
"""Modes whose texts are meant to become pictures, even where none of them did."""
EXCERPT = 90
"""Characters of a text that stand under its picture in a film."""
SMALL = 200
"""Side in pixels of pictures that share the place of one."""


def are_drawn(folders: Sequence[Path], mode: str = "") -> bool:
    """Whether the samples are texts with pictures, and not one of both alone."""
    texts = any(load_texts(folder) for folder in folders)
    return texts and (mode in MODES or any(picture_paths(folder) for folder in folders))


def drawn(columns: Columns, reward: str = "reward", most: int = 8) -> str:
    """A card for each prompt: the request, and the text and picture of each state of the policy in columns.

    Args:
        columns: The states.
        reward: The reward that is written above each sample.
        most: Cards at most; always the first ones, so that nobody has picked.
    """
    pictures = {label: picture_paths(folder) for label, (folder, _) in columns.items()}
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
        path, text = picture_paths(folder).get((prompt, 0)), load_texts(folder).get((prompt, 0))
        picture = _none(text) if path is None else shown(path)
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
