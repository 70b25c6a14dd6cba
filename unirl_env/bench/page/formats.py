"""A table as CSV, Markdown, LaTeX, HTML and for a console: the same numbers everywhere."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Callable, Iterable, Sequence
from urllib.parse import quote

from rich.markup import escape
from rich.table import Table as RichTable

from unirl_env.bench.page.cells import Cell, Table
from unirl_env.bench.page.numbers import ENOUGH

PROSE = 40
"""Letters from which a text needs room."""
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def as_csv(table: Table) -> str:
    """The table with ten digits, and columns for bounds and remarks where there are any."""
    head: list[str] = []
    columns: list[list[str]] = []
    for place, name in enumerate(table.head):
        cells = [row[place] for row in table.rows]
        for suffix, value in _parts(cells):
            head.append(f"{name}{suffix}")
            columns.append([value(cell) for cell in cells])
    return csv_text(head, zip(*columns, strict=True))


def csv_text(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows as CSV that a spreadsheet does not take for formulas."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_harmless(text) for text in head)
    writer.writerows([_harmless(text) for text in row] for row in rows)
    return stream.getvalue()


def digits(value: float | None) -> str:
    """A number as CSV has it."""
    return "" if value is None else f"{value:.10g}"


def as_markdown(table: Table) -> str:
    """The table for GitHub and its like."""
    lines = [_line(markdown_text(text) for text in table.head)]
    lines.append(_line("---" if i < table.texts else "---:" for i in range(len(table.head))))
    for row in table.rows:
        lines.append(_line(_marked(cell, markdown_text, "**", "**", " ({})") for cell in row))
    note = f"\n{markdown_text(table.note)}\n" if table.note else ""
    return f"## {markdown_text(table.title)}\n{note}\n" + "\n".join(lines) + "\n"


def markdown_text(text: str) -> str:
    """A text of which Markdown takes nothing for a sign of its own."""
    return re.sub(r"([\\`*_{}<>|~#])", r"\\\1", _one_line(text))


def as_latex(table: Table) -> str:
    """The table with the rules of `booktabs`."""
    kinds = "l" * table.texts + "r" * (len(table.head) - table.texts)
    lines = [" & ".join(_latex(text) for text in table.head)]
    lines += [
        " & ".join(_marked(cell, _latex, r"\textbf{", "}", r" {{\scriptsize ({})}}") for cell in row)
        for row in table.rows
    ]
    body = " \\\\\n".join(lines[1:])
    return (
        f"% {_one_line(table.title)}. {_one_line(table.note)}\n"
        f"\\begin{{tabular}}{{{kinds}}}\n\\toprule\n{lines[0]} \\\\\n\\midrule\n{body} \\\\\n"
        f"\\bottomrule\n\\end{{tabular}}\n"
    )


def as_rich(table: Table) -> RichTable:
    """The table for a console."""
    made = RichTable(title=escape(table.title), title_justify="left", caption_justify="left")
    for i, name in enumerate(table.head):
        made.add_column(escape(name), justify="left" if i < table.texts else "right")
    for row in table.rows:
        made.add_row(*(_marked(cell, escape, "[bold]", "[/]", " [yellow]({})[/]") for cell in row))
    return made


def as_html(table: Table, links: str = "", plain: str = "") -> str:
    """The table for the page: bounds in small print, what is missing greyed out.

    Args:
        table: The table.
        links: HTML under it.
        plain: More classes.
    """
    head = "".join(
        f'<th scope="col"{_side(i, table)}>{html.escape(text)}</th>' for i, text in enumerate(table.head)
    )
    lines = []
    for row in table.rows:
        cells = "".join(_html(cell, i, table) for i, cell in enumerate(row))
        lines.append(f"<tr>{cells}</tr>")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(table.title)}">'
        f'<table class="plain numbers-of {plain}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>{links}"
    )


def _parts(cells: Sequence[Cell]) -> list[tuple[str, Callable[[Cell], str]]]:
    estimates = [cell.estimate for cell in cells if cell.estimate is not None]
    if not estimates:
        found: list[tuple[str, Callable[[Cell], str]]] = [("", lambda cell: cell.text)]
    else:
        found = [("", lambda cell: digits(cell.estimate.value) if cell.estimate else cell.text)]
    if any(estimate.low is not None for estimate in estimates):
        found += [
            (" low", lambda cell: digits(cell.estimate.low if cell.estimate else None)),
            (" high", lambda cell: digits(cell.estimate.high if cell.estimate else None)),
            (" level", lambda cell: digits(cell.estimate.level if cell.estimate else None)),
            (" method", lambda cell: cell.estimate.method if cell.estimate else ""),
            (" coverage", lambda cell: digits(cell.estimate.coverage if cell.estimate else None)),
        ]
    if any(cell.mark for cell in cells):
        found.append((" remark", lambda cell: cell.mark))
    return found


def _marked(cell: Cell, spell: Callable[[str], str], before: str, after: str, mark: str) -> str:
    text = spell(cell.text)
    text = f"{before}{text}{after}" if cell.strong else text
    return text + (mark.format(spell(cell.mark)) if cell.mark else "")


def _html(cell: Cell, place: int, table: Table) -> str:
    tag = 'th scope="row"' if place < min(table.texts, 1) else "td"
    shown, _, bounds = cell.text.partition(" [")
    if cell.estimate is None or not bounds:
        shown, bounds = cell.text, ""
    inner = html.escape(shown)
    inner = f"<b>{inner}</b>" if cell.strong else inner
    if cell.link and ".." not in cell.link.split("/"):
        inner = f'<a href="{html.escape(quote(cell.link.lstrip("/")))}">{inner}</a>'
    if bounds:
        inner += f" <small>[{html.escape(bounds)}</small>"
    if bounds:
        inner += _coverage(cell)
    if cell.mark:
        kind = "remark" if place < table.texts else "remark bad"
        inner += f' <span class="{kind}">{html.escape(cell.mark)}</span>'
    kind = ' class="number"' if place >= table.texts else ' class="prose"' if len(cell.text) > PROSE else ""
    return f"<{tag}{kind}>{inner}</{tag.partition(' ')[0]}>"


def _coverage(cell: Cell) -> str:
    """What is measured of such intervals, where it is less than what they promise."""
    share = cell.estimate.coverage if cell.estimate else None
    if share is None or share >= ENOUGH:
        return ""
    return f' <span class="covers bad">covers {100 * share:.0f} %</span>'


def _side(place: int, table: Table) -> str:
    return "" if place < table.texts else ' class="number"'


def _line(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in _one_line(text))


def _harmless(text: str) -> str:
    """A text that no spreadsheet takes for a formula; numbers stay as they are."""
    if text[:1] in ("=", "@") or (
        text[:1] in ("+", "-") and not re.fullmatch(r"[-+]?[\d.]*(e[-+]?\d+)?", text)
    ):
        return f"'{text}"
    return text
