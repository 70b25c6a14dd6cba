"""The table of all scores: each part of each reward, before and after, on every prompt set."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from unirl_env.run.summary import SETS, label, number, score_rows

__all__ = ["LEAD", "scores_table"]

LEAD = (
    "Every part of every reward: mean and standard deviation over samples, and the difference with its 95 % "
    "interval. Failed are samples that the scorer could not judge; not applicable, those that a part has "
    "nothing to say of, such as the place of an object in a prompt that names none. Neither counts as zero."
)
HEAD = ("score", "before", "after", "difference", "failed", "not applicable")


def scores_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as HTML, or nothing.

    Args:
        rows: The rows of `evaluation.jsonl`; those of older runs lack standard deviations and some counts.
    """
    scores = score_rows(rows)
    if not scores:
        return ""
    groups = []
    for name in dict.fromkeys(row["set"] for row in scores):
        title = html.escape(SETS.get(name, name).capitalize())
        body = "".join(_row(row) for row in scores if row["set"] == name)
        groups.append(f'<tbody><tr><th colspan="{len(HEAD)}">{title}</th></tr>{body}</tbody>')
    head = "".join(f"<th>{text}</th>" for text in HEAD)
    return (
        f'<div class="scroll"><table class="plain scores"><thead><tr>{head}</tr></thead>'
        f"{''.join(groups)}</table></div>"
    )


def _row(row: Mapping[str, Any]) -> str:
    trained = row["last"] > row["first"]
    before, after = row["before"], row["after"] if trained else None
    cells = [
        _mean(before),
        _mean(after),
        _difference(row["difference"] if trained else None),
        _count(before, after, "failed"),
        _count(before, after, "absent"),
    ]
    kind = "" if "/" in row["key"] else ' class="whole"'
    inner = "".join(f'<td class="number">{cell}</td>' for cell in cells)
    return f"<tr{kind}><td>{html.escape(label(row['key']))}</td>{inner}</tr>"


def _mean(part: Mapping[str, Any] | None) -> str:
    if part is None or part["mean"] is None:
        return "-"
    std = part.get("std")
    return number(part["mean"]) + (f" <small>± {number(std)}</small>" if std is not None else "")


def _difference(part: Mapping[str, Any] | None) -> str:
    if part is None or part["mean"] is None:
        return "-"
    kind = "up" if part["low"] > 0 else "down" if part["high"] < 0 else "flat"
    bounds = f"{part['low']:+.3f} to {part['high']:+.3f}"
    return f'<span class="gain {kind}">{part["mean"]:+.3f}</span><small>{bounds}</small>'


def _count(before: Mapping[str, Any], after: Mapping[str, Any] | None, name: str) -> str:
    counts = [part.get(name) for part in (before, after) if part is not None]
    if None in counts:
        return "-"
    return " → ".join(dict.fromkeys(map(str, counts)))
