"""Cutting a text into pieces of mathematics and the words between them."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Piece", "pieces_of"]

# Bounded repetitions only: the texts come from models, and reading one must take linear time.
_NUMERAL = (
    r"(?:\d{1,3}(?:[ '\u2019]\d{3}){1,20}(?![\d/])(?:[.,]\d{1,300})?"
    r"|\d{1,300}(?:(?:[.,]|\{,\})\d{1,300}){0,40}|(?<![\d.])\.\d{1,300})(?:[eE][-+]?\d{1,9}(?![\w.]))?"
)
_PIECE = re.compile(
    # Most of a text is prose.
    r"(?P<prose>(?:(?!(?:and|or|per|percent|pct|sqrt|sin|cos|tan|log|ln|exp|lcm|gcd)(?![A-Za-z]))"
    r"(?<![A-Za-z\\])[A-Za-z]{2,40}(?![\w'-])[ \t,:]{0,9}){1,60})"
    r"|(?P<display>\$\$(?P<display_dollars>[^$]{1,300})\$\$|\\\[(?P<display_brackets>[\s\S]{1,300}?)\\\])"
    r"|(?P<inline>\$(?P<dollars>[^$\n]{1,300})\$|\\\((?P<brackets>[^\n]{1,300}?)\\\))"
    r"|(?P<label>(?m:^)[ \t]{0,9}\(?(?:[a-h]|[ivx]{1,4}|\d{1,2}(?=\)))\) {1,9}(?=\S)|(?<!\w)\([A-H]\)(?= ))"
    r"|(?P<bars>\|[^|\s]{1,40}\|)"
    r"|(?P<function>(?:sqrt|sin|cos|tan|log|ln|exp|lcm|gcd)(?:_?\d{1,3}|_\{\w{1,3}\})?(?=[ ({]|(?<=t)\d))"
    r"|(?P<tag></?[A-Za-z][\w-]{0,30}>)"
    r"|(?P<name>(?:[A-Za-z]{2,40}[-_]?|(?<![A-Za-z\\])[A-Za-z])\d[\w.]{0,60}"
    r"|(?![1-9]\d{0,2}(?:\.\d{3}){2,9}(?![\d.]))\d{1,30}(?:\.\d{1,30}){2,}(?![\d,])"
    r"|\((?:mod|modulo) \d{1,30}\)"
    r"|\d{1,9}(?![ckm]?m[23](?!\w)|[eE]\d|[a-z]\d? ?[=+])[A-Za-z]{1,9}\d[A-Za-z\d]{0,60}"
    r"|0[xX][\dA-Fa-f]{1,60}"
    r"|\d{4}-\d\d-\d\d|\d{1,4}/\d{1,2}/\d{2,4}|[\w.]{1,60}@[\w.]{1,60})"
    rf"|(?P<clock>\d{{1,9}}(?: ?: ?\d{{1,9}}){{1,3}})"
    rf"|(?P<number>{_NUMERAL})"
    r"|(?P<wrapped>\\(?:text|mathrm|operatorname|mbox|textrm|mathbf|textbf) ?\{(?P<words>[^{}]{0,100})\})"
    r"|(?P<link>(?:, ?)?(?:and|or)(?![A-Za-z]))"
    r"|(?P<percent>\\?%|per ?cent(?![A-Za-z])|pct(?![A-Za-z]))"
    r"|(?P<command>\\[A-Za-z]{1,30}|\\[{}%$|])"
    r"|(?P<letter>(?<![A-Za-z\\])[A-Za-z](?![A-Za-z']))"
    r"|(?P<word>[^\W\d_](?:[^\W\d_]|['\u2019-](?=[A-Za-z])){0,60})"
    r"|(?P<open>[(\[{])|(?P<close>[)\]}])"
    r"|(?P<equals>=>|->|:=|==?)|(?P<compare><=|>=|!=|[<>])"
    r"|(?P<sign>\*\*(?=[\d(-])|[-+*/^_|!])|(?P<money>US\$|[$\u20ac\u00a3\u00a5\u20b9\u20a9\u20bd])"
    r"|(?P<degree>\u00b0)|(?P<comma>[,;])|(?P<space>[ \t]{1,300}|\\[,;: !])|(?P<other>[\s\S])"
)
_PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,}(?=[\s,.]|$)")


class Piece(NamedTuple):
    """A part of a text: its kind (a group of `_PIECE`), its characters, and where they stand."""

    kind: str
    text: str
    start: int
    end: int


def pieces_of(text: str) -> list[Piece]:
    """All of `text` in its order; dollars around words are prices, all others formulas."""
    pieces, position = [], 0
    while position < len(text):
        found = _PIECE.match(text, position)
        assert found is not None  # a group takes any letter
        group = str(found.lastgroup)
        kind = _INNER.get(group, group)
        if kind in ("inline", "display") and text[position] == "$" and not _is_formula(found):
            pieces.append(Piece("money", "$", position, position + 1))
            position += 1
            continue
        pieces.append(Piece(kind, found.group(), position, found.end()))
        position = found.end()
    return pieces


_INNER = {
    "display_dollars": "display", "display_brackets": "display", "dollars": "inline", "brackets": "inline",
    "words": "wrapped",
}  # fmt: skip


def _is_formula(found: re.Match[str]) -> bool:
    inner = (found["dollars"] or found["display_dollars"] or "").strip()
    plain = re.sub(r"\\(?:text|mathrm|operatorname|mbox)[a-z]* ?\{[^{}]*\}|\\[A-Za-z]+", "", inner)
    return bool(inner) and not _PROSE.search(plain) and inner[-1] not in ",;" and inner not in ("and", "or")
