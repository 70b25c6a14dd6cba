r"""The last complete expression of a text that has no box.

A text is cut into pieces of mathematics: numbers, letters of algebra, signs, LaTeX, and formulas between
dollars. What stands together is one expression, and an answer is all of it: `2\pi` and never its 2, `(2, 6)`
and never its 6. What is part of a name (`H2O`, `v2.0.1`, `COVID-19`) is no number.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from unirl_env.rewards.texts.measures import trailing_unit
from unirl_env.rewards.texts.plain_latex import plain_signs

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


_RELATIONS = frozenset(r"\le \leq \ge \geq \lt \gt \ne \neq \in \subset \subseteq".split())
_EQUALITIES = frozenset(r"\approx \to \rightarrow \Rightarrow \implies \iff \simeq \sim \equiv".split())
_LAYOUT = frozenset(
    r"\boxed \fbox \quad \qquad \displaystyle \hline \newline \therefore \because \item \par".split()
)
_ANCHOR = re.compile(
    r"\d|\\(?:pi|sqrt|infty|frac|emptyset|varnothing|mathbb|binom|begin|emptyset)(?![a-z])|[A-Za-z].*[-+*/^=<>]"
)
_LISTS = re.compile(
    r"(?:^|[=:\n]|\b(?:are|is|be|equals?|either|both|between|values?|solutions?|roots?|answers?))\s*$"
)
_ALWAYS = frozenset("number clock inline display function bars equals compare percent degree".split())
_SUBSCRIPT = re.compile(r"_ ?(?:\{[^{}]{0,60}\}|\w)")
_LONGEST = 200
"""Pieces of an expression."""


def last_expression(text: str) -> str | None:
    """The last complete expression, its unit included; None where there is none.

    A formula that is a mere name (`$x$`) is passed over, and so are dollars around words, which are prices.
    Of an equation the last side is the answer, an inequality is one as a whole, and numbers that `and`, `or`
    or commas join are a list. Signs are returned as LaTeX.
    """
    text = plain_signs(text)
    end, size = len(text), 1
    while end > 0:
        # Answers stand at the end: what comes long before is read only if nothing is found.
        start = _start(text, max(0, end - size))
        while start and _cuts_formula(text[start:end]):
            size = max(200, 4 * size)
            start = _start(text, max(0, end - size))
        found = _last_of(text[start:end])
        if found is not None:
            return found or None
        end, size = start, max(200, 4 * size)
    return None


def _start(text: str, end: int) -> int:
    """Where the line or the sentence before `end` begins."""
    return max(text.rfind("\n", 0, end), text.rfind(". ", 0, end)) + 1


def _cuts_formula(part: str) -> bool:
    """Whether a part of a text may begin within a formula."""
    return (
        part.count(r"\]") > part.count(r"\[")
        or part.count(r"\)") > part.count(r"\(")
        or part.count("$") % 2 == 1
        or part.count("}") > part.count("{")
    )


def _last_of(text: str) -> str | None:
    for run in reversed(_runs(text)):
        found = _answer(run, text)
        if found is not None:
            return found
    return None


def _runs(text: str) -> list[list[Piece]]:
    """Maximal sequences of pieces that can belong to one expression."""
    runs: list[list[Piece]] = []
    run: list[Piece] = []
    pieces = pieces_of(text)
    skip_to = 0
    for index, piece in enumerate(pieces):
        if piece.start < skip_to:
            continue
        if piece.kind == "number" and run and run[-1].kind == "number" and not _continues(piece, run, text):
            runs.append(run)
            run = []
        if _belongs(piece, run, pieces, index, text):
            run.append(piece)
            if piece.kind in ("number", "inline", "display") or piece.text in ("}", r"\pi"):
                after = trailing_unit(text, piece.end)
                if text[piece.end : after].strip() not in ("", "$"):
                    run[-1] = piece._replace(text=text[piece.start : after], end=after)
                    skip_to = after
        elif run and piece.kind != "space":
            runs.append(run)
            run = []
    return [*runs, run] if run else runs


def _continues(piece: Piece, run: list[Piece], text: str) -> bool:
    """Whether a number belongs to the one before: 1 1/2, 5 ft 3 in, log_2 8; otherwise they are two."""
    before = run[-1].text
    if not before[-1].isdigit():
        return trailing_unit(text, piece.end) > piece.end
    mixed = text[piece.end : piece.end + 1] == "/" and before.isdigit()
    return mixed or (len(run) > 1 and run[-2].text == "_")


def _belongs(piece: Piece, run: list[Piece], pieces: list[Piece], index: int, text: str) -> bool:
    kind = piece.kind
    before = text[piece.start - 1 : piece.start]
    after = text[piece.end : piece.end + 1]
    if kind in _ALWAYS:
        return True
    if kind == "command":
        return piece.text not in _LAYOUT
    if kind == "wrapped":
        inner = piece.text[piece.text.index("{") + 1 : -1].strip()
        return inner in ("and", "or", "e", "i") or (len(inner) < 20 and bool(run) and "\\" in text)
    if kind == "letter":
        return _is_variable(piece, run, pieces, index, text)
    if kind == "open":
        # `12 (about 3 each)`: a bracket after a blank opens a remark.
        return not (before == " " and run and run[-1].kind in ("number", "inline"))
    if kind == "sign":
        if piece.text == "-" and not run and after == " ":
            return False  # a bullet, or a dash
        if piece.text == "-" and before.isalpha() and not (run and run[-1].kind == "letter"):
            return False
        if piece.text == "-" and re.match(r"[A-Za-z]{2}", text[piece.end : piece.end + 2]):
            return False
        return piece.text != "|" and (piece.text not in ("*", "**", "_") or bool(run))
    if kind in ("link", "comma"):
        return bool(run)
    return kind in ("close", "money")


def _is_variable(piece: Piece, run: list[Piece], pieces: list[Piece], index: int, text: str) -> bool:
    """Whether a single letter is algebra rather than a word, an initial or the name of a thing."""
    touching = bool(run) and (run[-1].end == piece.start or run[-1].kind == "command")
    following = next((p for p in pieces[index + 1 : index + 3] if p.kind != "space"), None)
    operates = following is not None and (
        following.kind in ("equals", "compare")
        or (following.kind == "sign" and following.text not in ("!", "|"))
        or (following.kind == "open" and following.start == piece.end)
        or (following.kind == "command" and following.text in _RELATIONS | _EQUALITIES)
    )
    operated = bool(run) and (run[-1].kind in ("sign", "equals", "compare", "open", "comma") or touching)
    if piece.text in "aAI":
        return touching or (operates and following is not None and following.text != "-")
    if touching or operated:
        return True
    return operates or (bool(run) and run[-1].kind == "number" and piece.text.islower())


def _answer(run: list[Piece], text: str) -> str | None:
    """The expression that a run ends in; None if there is none, and nothing if it is too long to be read."""
    whole, run = run, run[-_LONGEST:]
    part = _balanced(_last_side(run))
    if part and part[0] is run[0] is not whole[0]:
        return ""
    introduced = part and (part[0] is not run[0] or bool(_LISTS.search(text[: part[0].start])))
    part = _last_item(part, bool(introduced))
    while part and (part[-1].kind in ("comma", "link", "equals", "compare", "open") or _dangles(part[-1])):
        part = part[:-1]
    while part and (
        part[0].kind in ("comma", "link", "equals", "close", "percent", "degree")
        or (part[0].kind == "sign" and part[0].text not in "+-")
    ):
        part = part[1:]
    if not part or part[0].kind == "compare":
        return None
    found = _joined(part).strip()
    return found if _ANCHOR.search(_SUBSCRIPT.sub("", found)) else None


def _dangles(piece: Piece) -> bool:
    return (piece.kind == "sign" and piece.text != "!") or (piece.kind == "money" and piece.text != "$")


def _joined(part: list[Piece]) -> str:
    words, end = [], part[0].start
    for index, piece in enumerate(part):
        if piece.kind == "money" and index > 1 and piece is not part[-1]:
            continue
        words.append(" " if piece.start > end else "")
        inner = piece.text
        for opens, closes in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
            if piece.kind in ("inline", "display") and inner.startswith(opens):
                body, _, rest = inner[len(opens) :].partition(closes)
                inner = body.strip() + rest
                break
        words.append(_FUNCTION.sub(_as_command, inner) if piece.kind == "function" else inner)
        end = piece.end
    return "".join(words)


_FUNCTION = re.compile(r"([a-z]+)_?(\{?\w*\}?)")


def _as_command(found: re.Match[str]) -> str:
    return rf"\{found[1]}_{{{found[2].strip('{}')}}}" if found[2] else rf"\{found[1]}"


def _last_side(run: list[Piece]) -> list[Piece]:
    """What follows the last sign of equality; all of an inequality."""
    depth, cut = 0, 0
    for index, piece in enumerate(run):
        depth += (piece.kind == "open" or piece.text == r"\{") - (
            piece.kind == "close" or piece.text == r"\}"
        )
        equality = piece.kind == "equals" or piece.text in _EQUALITIES
        if (
            equality
            and depth <= 0
            and any(p.kind not in ("space", "equals", "comma") for p in run[index + 1 :])
        ):
            cut = index + 1
    return run if cut and _is_alternatives(run) else run[cut:]


def _is_alternatives(run: list[Piece]) -> bool:
    """Whether a run says `x = 3 or x = 5`, which is one answer with two values."""
    items: list[list[Piece]] = [[]]
    for piece in run:
        if piece.kind in ("link", "comma") or (piece.kind == "wrapped" and _links(piece)):
            items.append([])
        else:
            items[-1].append(piece)
    items = [item for item in items if item]
    named = [len(item) > 2 and item[0].kind == "letter" and item[1].kind == "equals" for item in items]
    return len(items) > 1 and all(named) and len({item[0].text for item in items}) == 1


def _links(piece: Piece) -> bool:
    return piece.text[piece.text.index("{") + 1 : -1].strip() in ("and", "or")


def _balanced(part: list[Piece]) -> list[Piece]:
    """The last piece of mathematics between brackets that have no partner; all of it where each has one."""
    opened: list[int] = []
    alone: list[int] = []
    for index, piece in enumerate(part):
        if piece.kind == "open" or piece.text == r"\{":
            opened.append(index)
        elif piece.kind == "close" or piece.text == r"\}":
            if opened:
                opened.pop()
            else:
                alone.append(index)
    end = len(part)
    for index in reversed(sorted([*alone, *opened])):
        if any(piece.kind in _CONTENT for piece in part[index + 1 : end]):
            return part[index + 1 : end]
        end = index
    return part[:end]


_CONTENT = frozenset("number clock inline display bars command letter".split())


def _last_item(part: list[Piece], introduced: bool) -> list[Piece]:
    """All of a list, or what follows the last comma of what is none."""
    depth, cut, linked = 0, 0, False
    for index, piece in enumerate(part):
        depth += (piece.kind == "open" or piece.text == r"\{") - (
            piece.kind == "close" or piece.text == r"\}"
        )
        if depth == 0 and (piece.kind == "link" or (piece.kind == "wrapped" and _links(piece))):
            prices = "and" in piece.text and any(p.kind == "money" for p in part[index + 1 : index + 2])
            linked = linked or introduced or not prices
            cut = cut if linked else index + 1
        later = any(p.kind not in ("comma", "sign") for p in part[index + 1 :])
        if depth == 0 and piece.kind == "comma" and later and not introduced and not linked:
            following = any(p.kind == "link" for p in part[index + 1 :])
            cut = cut if following else index + 1
    return part[cut:]
