"""Charts as inline SVG: real text, the page's own colours in light and dark, nothing to load.

With them what an algorithm is called in a picture or a table, and its colour there, whoever wrote it.
"""

from __future__ import annotations

import colorsys
import hashlib
import html
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from unirl_env.run.report.drawing import Drawing

LEFT, RIGHT, TOP, BOTTOM = 48, 14, 12, 26
DODGE = 5


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        name: Its label; series without one stay out of the legend and the read-out.
        x: Positions.
        y: Values; None leaves a gap.
        style: A CSS class of the page: `raw`, `bound`, or one of `styles`.
        low: Lower bounds of a band or of error bars, with `high`.
        high: Upper bounds.
        points: Draw points with error bars, joined by a thin line.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    style: str = "main"
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    points: bool = False


@dataclass(frozen=True)
class Chart:
    """Curves over the iterations, or over another cost.

    Attributes:
        title: What it shows, in a few words.
        series: The curves, the most important last so that it lies on top.
        width: Of the drawing's own coordinates; about the pixels that it gets on a page.
        height: Likewise.
        note: A sentence under the title.
        floor: A value that the axis always shows.
        percent: Write values as percentages.
        marks: Upright lines at iterations where something happened, by what it was.
        across: What the horizontal axis counts, in the singular.
        whole: Only whole numbers stand under it.
        start: A value that it always shows.
        dodge: Points of several series at one place stand side by side.
    """

    title: str
    series: Sequence[Series] = field(default_factory=list)
    width: int = 340
    height: int = 200
    note: str = ""
    floor: float | None = None
    percent: bool = False
    marks: Sequence[tuple[float, str]] = ()
    across: str = "iteration"
    whole: bool = True
    start: float | None = 0.0
    dodge: bool = True

    def svg(self, links: str = "") -> str:
        """The chart as a `<figure>`, with `links` as HTML under it."""
        return self.drawing().figure(links)

    def drawing(self) -> Drawing:
        """The chart, to be shown on a page or to become a file."""
        x_low, x_high = _extent(
            [x for s in self.series for x in s.x] + [x for x, _ in self.marks], self.start
        )
        values = [v for s in self.series for part in (s.y, s.low or (), s.high or ()) for v in part]
        y_low, y_high = _extent(values, self.floor)
        y_ticks = axis_ticks(y_low, y_high, 6)
        pad = 0.05 * (y_high - y_low)
        y_low = y_low if y_low == self.floor else y_low - pad
        frame = _Frame(self.width, self.height, x_low, x_high, y_low, y_high + pad)
        # One form for the whole axis: 5e-4 above 0.001 reads as the larger one.
        tiny = max(abs(t) for t in y_ticks or (1.0,)) < 0.01
        parts = [
            frame.grid(y_ticks, lambda t: self._write(t, tiny)),
            frame.abscissa(axis_ticks(x_low, x_high, 6, whole=self.whole)),
        ]
        parts += [frame.mark(x, text) for x, text in self.marks]
        step = DODGE if self.dodge else 0
        dodge = [step * (i - (len(self.series) - 1) / 2) for i in range(len(self.series))]
        parts += [frame.curve(s, d if s.points else 0.0) for s, d in zip(self.series, dodge, strict=True)]
        parts.append(f'<line class="cursor" y1="{TOP}" y2="{self.height - BOTTOM}"/>')
        keys = [(s.style, s.name) for s in self.series if s.name]
        marks = "".join(parts)
        return Drawing(self.title, self.width, self.height, marks, keys, self.note, self._readout(frame))

    def _write(self, value: float, tiny: bool = False) -> str:
        return f"{100 * value:.3g} %" if self.percent else _number(value, 0.01 if tiny else 1e-3)

    def _readout(self, frame: _Frame) -> str:
        named = [s for s in self.series if s.name]
        rows: dict[float, list[str | None]] = {}
        for i, s in enumerate(named):
            for x, y in zip(s.x, s.y, strict=True):
                if y is not None and math.isfinite(y):
                    rows.setdefault(x, [None] * len(named))[i] = self._write(y)
        return json.dumps(
            {
                "across": self.across,
                "names": [s.name for s in named],
                "rows": [[_position(x), round(frame.x(x), 1), *rows[x]] for x in sorted(rows)],
            }
        )


@dataclass(frozen=True)
class _Frame:
    """The way from values to coordinates."""

    width: int
    height: int
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        share = (value - self.x_low) / ((self.x_high - self.x_low) or 1)
        return LEFT + share * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / ((self.y_high - self.y_low) or 1)
        return self.height - BOTTOM - share * (self.height - TOP - BOTTOM)

    def grid(self, ticks: Sequence[float], write) -> str:
        return "".join(
            f'<line class="grid" x1="{LEFT}" x2="{self.width - RIGHT}" y1="{self.y(t):.1f}" '
            f'y2="{self.y(t):.1f}"/><text class="tick" x="{LEFT - 7}" y="{self.y(t) + 4:.1f}" '
            f'text-anchor="end">{write(t)}</text>'
            for t in ticks
        )

    def abscissa(self, ticks: Sequence[float]) -> str:
        return "".join(
            f'<text class="tick" x="{self.x(t):.1f}" y="{self.height - 8}" text-anchor="middle">'
            f"{_number(t)}</text>"
            for t in ticks
        )

    def mark(self, x: float, text: str) -> str:
        # Its name stands on the side where there is room for it.
        right = self.x(x) > 0.6 * self.width
        return (
            f'<line class="mark" x1="{self.x(x):.1f}" x2="{self.x(x):.1f}" y1="{TOP}" '
            f'y2="{self.height - BOTTOM}"/><text class="mark" x="{self.x(x) + (-5 if right else 5):.1f}" '
            f'y="{TOP + 9}" text-anchor="{"end" if right else "start"}">{html.escape(text)}</text>'
        )

    def curve(self, series: Series, dodge: float) -> str:
        # Points with error bars stand side by side, or those of one iteration would hide each other.
        rows = [
            (self.x(x) + dodge, self.y(y), i)
            for i, (x, y) in enumerate(zip(series.x, series.y, strict=True))
            if y is not None and math.isfinite(y)
        ]
        if not rows:
            return ""
        parts = []
        bounds = [(i, series.low[i], series.high[i]) for _, _, i in rows] if series.low else []
        bounds = [(i, low, high) for i, low, high in bounds if low is not None and high is not None]
        if bounds and not series.points:
            over = [f"{self.x(series.x[i]):.1f},{self.y(high):.1f}" for i, _, high in bounds]
            under = [f"{self.x(series.x[i]):.1f},{self.y(low):.1f}" for i, low, _ in reversed(bounds)]
            parts.append(f'<polygon class="band {series.style}" points="{" ".join(over + under)}"/>')
        path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y, _ in rows)
        parts.append(f'<path class="curve {series.style}{" thin" if series.points else ""}" d="{path}"/>')
        if series.points:
            parts += [
                f'<line class="error {series.style}" x1="{self.x(series.x[i]) + dodge:.1f}" '
                f'x2="{self.x(series.x[i]) + dodge:.1f}" y1="{self.y(low):.1f}" y2="{self.y(high):.1f}"/>'
                for i, low, high in bounds
            ]
            parts += [f'<circle class="{series.style}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y, _ in rows]
        elif len(rows) == 1:
            parts.append(
                f'<circle class="{series.style}" cx="{rows[0][0]:.1f}" cy="{rows[0][1]:.1f}" r="3"/>'
            )
        return "".join(parts)


def _position(value: float) -> float:
    """A place on the horizontal axis as one reads it out: whole numbers stay, others have four digits."""
    return value if value == int(value) else float(f"{value:.4g}")


def smooth(values: Sequence[float | None], reach: int) -> list[float | None]:
    """A centred mean over `reach` neighbours on each side that leaves out gaps."""
    found: list[float | None] = []
    for i in range(len(values)):
        # As far to the left as to the right, or the ends would lean towards the middle.
        near = min(reach, i, len(values) - 1 - i)
        window = [v for v in values[i - near : i + near + 1] if v is not None and math.isfinite(v)]
        found.append(sum(window) / len(window) if window else None)
    return found


def _extent(values: Sequence[float | None], floor: float | None) -> tuple[float, float]:
    known = [v for v in values if v is not None and math.isfinite(v)]
    known += [floor] if floor is not None else []
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if high == low:
        low, high = (
            (low, low + 1.0) if low == floor else (low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1))
        )
    return low, high


def axis_ticks(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    """About `count` round numbers in [low, high].

    Args:
        low: The lower end.
        high: The upper end, above `low`.
        count: How many are wanted.
        whole: Only whole ones.
    """
    raw = (high - low) / max(1, count - 1)
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(m * scale for m in (1, 2, 2.5, 5, 10) if m * scale >= raw * 0.999)
    if whole:
        step = max(1, round(step))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float, least: float = 1e-3) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < least:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


TITLES = {
    "awm": "AWM",
    "drpo": "DRPO",
    "elbo_pg": "ELBO-PG",
    "flow_dppo": "FlowDPPO",
    "grpo": "GRPO",
    "grpo_guard": "GRPO-Guard",
    "gspo": "GSPO",
    "nft": "NFT",
    "temp_flow": "TempFlow-GRPO",
}
COLOURS = {"flow_dppo": "#2563eb", "grpo": "#d97706", "drpo": "#059669", "gspo": "#9333ea", "pg": "#6b7280"}
"""Of what has appeared in pictures before."""
FREE = ("#db2777", "#0891b2", "#84cc16", "#b91c1c", "#92400e", "#1e3a8a", "#f472b6", "#a3a300", "#14b8a6")
"""Apart from those above and from each other; a tenth name in one picture gets a hue of its own."""
STYLES = ("main", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
"""Classes of the report's page; a ninth curve has the colour of the first again."""


def short_name(name: str) -> str:
    """A name for people: of a path its last part, without what all classes of configurations end in.

    Example:
        >>> short_name("mylab.alg:ReinforceConfig"), short_name("grpo")
        ('Reinforce', 'GRPO')
    """
    last = name.rpartition(":")[2].rpartition(".")[2] or name
    return TITLES.get(name) or last.removesuffix("Config") or last


def titles(names: Iterable[str]) -> dict[str, str]:
    """Short names of everything in one picture; two that would be alike stay whole."""
    short = {name: short_name(name) for name in names}
    alike = [title for title in short.values() if list(short.values()).count(title) > 1]
    return {name: name if title in alike else title for name, title in short.items()}


def colours(names: Iterable[str]) -> dict[str, str]:
    """Colours as `#rrggbb` of everything in one picture, no two alike.

    A name has the same colour in every picture, unless one before it in the alphabet took that there.
    """
    found = {name: COLOURS[name] for name in names if name in COLOURS}
    for name in sorted(set(names) - found.keys()):
        start = _key(name)
        turned = [FREE[(start + i) % len(FREE)] for i in range(len(FREE))]
        found[name] = next((c for c in turned if c not in found.values()), None) or _hue(len(found))
    return {name: found[name] for name in names}


def styles(count: int) -> list[str]:
    """The page's classes for that many curves of one chart."""
    return [STYLES[i % len(STYLES)] for i in range(count)]


def _key(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _hue(place: int) -> str:
    """The `place`th of a row of hues that keep apart: the golden angle, at three depths."""
    rgb: Sequence[float] = colorsys.hls_to_rgb(place * 0.618034 % 1.0, (0.35, 0.5, 0.65)[place % 3], 0.75)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)
