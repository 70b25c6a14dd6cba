"""One drawing in two forms: a figure of a page in the page's colours, and a file of its own for a paper."""

from __future__ import annotations

import functools
import html
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LETTER = 6.3
"""Mean width in pixels of a letter of a legend."""
MARGIN, LINE = 12, 16
FILE_STYLE = """
text{{font:11.5px Helvetica,Arial,sans-serif;fill:{soft}}}
.title{{font-size:15px;font-weight:bold;fill:{ink}}} .name,.strong{{fill:{ink};font-weight:bold}}
.grid{{stroke:{line};stroke-width:1}} .zero{{stroke:{soft};stroke-width:1}}
.curve{{fill:none;stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}}
.curve.thin{{stroke-width:1.5;stroke-dasharray:4 4;opacity:.7}} .curve.raw{{stroke-width:1.3}}
.curve.bound{{stroke-width:1.3;stroke-dasharray:2 4}} .band{{opacity:.14}}
.error{{stroke-width:2.2;stroke-linecap:round;opacity:.55}} .key{{stroke-width:3;stroke-linecap:round}}
line.mark{{stroke:{down};stroke-width:1.5;stroke-dasharray:5 3}} text.mark{{fill:{down};font-weight:bold}}
.up{{fill:{up}}} .down{{fill:{down}}} .flat{{fill:{soft}}} .cursor{{visibility:hidden}}
"""


@dataclass(frozen=True)
class Drawing:
    """What is drawn, in coordinates of its own.

    Attributes:
        title: What it shows, in a few words.
        width: Of its coordinates; about the pixels that it gets on a page.
        height: Likewise.
        marks: What is drawn, as SVG.
        keys: The legend: a style and a name each.
        note: A sentence under the title.
        data: What the page's script reads out under the pointer, as JSON.
    """

    title: str
    width: float
    height: float
    marks: str
    keys: Sequence[tuple[str, str]] = ()
    note: str = ""
    data: str = ""

    def figure(self, links: str = "") -> str:
        """The drawing as a `<figure>`, with `links` as HTML under it."""
        legend = "".join(f'<span class="key {style}">{html.escape(name)}</span>' for style, name in self.keys)
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        data = f' data-chart="{html.escape(self.data)}"' if self.data else ""
        return (
            f'<figure class="chart"{data}>'
            f"<figcaption><h3>{html.escape(self.title)}</h3>{note}"
            f'<div class="legend">{legend}</div></figcaption>'
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{html.escape(self.title)}">{self.marks}</svg>'
            f'{links}<output class="readout"></output></figure>'
        )

    def file(self, palette: Mapping[str, str] | None = None) -> str:
        """The drawing as a file, on white, with its title and legend; without variables, which papers lack.

        Args:
            palette: A colour as `#rrggbb` for each style that the page's own do not name.
        """
        wide = self.width + 2 * MARGIN
        letters = int((wide - 2 * MARGIN) / 5.8)
        head: list[str] = []
        y = MARGIN + 6.0
        for kind, text, most in (("title", self.title, int(letters * 0.75)), ("note", self.note, letters)):
            for line in textwrap.wrap(text, most):
                y += LINE if head else 4
                head.append(f'<text class="{kind}" x="{MARGIN}" y="{y:g}">{html.escape(line)}</text>')
        keys, y = _keys(self.keys, wide, y)
        top = y + 10
        colours = page_colours() | dict(palette or {})
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:g} {top + self.height + MARGIN:g}" '
            f'width="{wide:g}" height="{top + self.height + MARGIN:g}">'
            f"<style>{_file_style(colours)}</style>"
            f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(head)}{keys}'
            f'<g transform="translate({MARGIN} {top:g})">{self.marks}</g></svg>\n'
        )


@functools.cache
def page_colours() -> dict[str, str]:
    """The page's colours by light, as `#rrggbb`."""
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    light = style[: style.index("}")]
    return {"bound": "#5d6675", **dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", light))}


def _keys(keys: Sequence[tuple[str, str]], wide: float, y: float) -> tuple[str, float]:
    parts, x = [], float(MARGIN)
    y += LINE + 2 if keys else 0
    for style, name in keys:
        need = 22 + LETTER * len(name) + 14
        if x > MARGIN and x + need > wide:
            x, y = float(MARGIN), y + LINE
        parts.append(
            f'<line class="key {style}" x1="{x:.1f}" x2="{x + 14:.1f}" y1="{y - 4:g}" y2="{y - 4:g}"/>'
            f'<text x="{x + 20:.1f}" y="{y:g}">{html.escape(name)}</text>'
        )
        x += need
    return "".join(parts), y


def _file_style(colours: Mapping[str, str]) -> str:
    ground = ("paper", "card", "ink", "soft", "line", "up", "down")
    rules = [
        f".curve.{name},.error.{name},.key.{name}{{stroke:{colour}}}"
        f".band.{name},circle.{name},rect.{name}{{fill:{colour}}}"
        for name, colour in colours.items()
        if name not in ground
    ]
    return FILE_STYLE.format_map({name: colours[name] for name in ground}) + "\n".join(rules)
