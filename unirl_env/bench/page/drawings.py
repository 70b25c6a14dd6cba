"""Drawings that charts of curves are not: rows of intervals, a matrix of probabilities, two rankings."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from itertools import pairwise

from unirl_env.bench.page.cells import spelled
from unirl_env.bench.page.numbers import Estimate
from unirl_env.run.report.charts import axis_ticks
from unirl_env.run.report.drawing import LETTER, Drawing

BOLD = 8.4
"""Mean width in pixels of a letter of a name."""
ROW, EDGE, FOOT, HEAD = 38, 10, 26, 4
LANE = 12
"""Pixels of one agent under a task."""
SIDE, LABELS = 46, 150
"""Of a matrix: pixels of a cell and of its names."""
TICKS, NAMES = 48, 120
"""Of two rankings: pixels of the numbers at the left and of the names at the right."""


def forest(
    title: str,
    rows: Sequence[tuple[str, str, Estimate | None]],
    note: str = "",
    width: int = 340,
    marks: Sequence[tuple[float, str]] = (),
) -> Drawing:
    """Estimates under each other, on one axis.

    Args:
        title: What is estimated.
        rows: A style, a name and an estimate each, from the top.
        note: A sentence under the title.
        width: Of the drawing.
        marks: Values with a name that stand upright in the drawing, if they are near what is estimated.
    """
    known = [e for _, _, e in rows if e is not None]
    values = [v for e in known for v in (e.value, e.low, e.high) if v is not None]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    span = (high - low) or abs(high) or 1.0
    near = [(v, text) for v, text in marks if low - 0.5 * span <= v <= high + 0.5 * span]
    low = min([low, *(v for v, _ in near)]) - 0.03 * span
    high = max([high, *(v for v, _ in near)]) + 0.03 * span
    height = HEAD + ROW * len(rows) + FOOT

    def across(value: float) -> float:
        return EDGE + (width - 2 * EDGE) * (value - low) / (high - low)

    parts = []
    for tick in axis_ticks(low, high, 6):
        x = across(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{HEAD}" y2="{height - FOOT}"/>')
        anchor = "start" if x < EDGE + 12 else "end" if x > width - EDGE - 12 else "middle"
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{height - 8}" text-anchor="{anchor}">{tick:.4g}</text>'
        )
    for value, text in near:
        parts.append(
            f'<line class="curve bound" x1="{across(value):.1f}" x2="{across(value):.1f}" y1="{HEAD}" '
            f'y2="{height - FOOT}"><title>{html.escape(text)}</title></line>'
        )
    for i, (style, name, estimate) in enumerate(rows):
        parts.append(_forest_row(HEAD + ROW * i, style, name, estimate, width, across))
    return Drawing(title, width, height, "".join(parts), note=note)


def strips(
    title: str,
    rows: Sequence[tuple[str, Sequence[tuple[str, str, Estimate | None]]]],
    note: str = "",
    width: int = 440,
    shown: Sequence[float] = (0.0, 1.0),
) -> Drawing:
    """Estimates of several agents under the name of each task, on one axis.

    Args:
        title: What is estimated.
        rows: A task's name and, for each agent, a style, a name and an estimate.
        note: A sentence under the title.
        width: Of the drawing.
        shown: Values that the axis always shows.
    """
    known = [e for _, part in rows for _, _, e in part if e is not None]
    values = [*shown, *(v for e in known for v in (e.value, e.low, e.high) if v is not None)]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    low, high = low - 0.03 * span, high + 0.03 * span

    def across(value: float) -> float:
        return EDGE + (width - 2 * EDGE) * (value - low) / (high - low)

    parts, y = [], float(HEAD)
    for name, part in rows:
        parts.append(
            f'<text class="name" x="{EDGE}" y="{y + 14}">{html.escape(_cut(name, width - 2 * EDGE))}'
            f"<title>{html.escape(name)}</title></text>"
        )
        y += 22
        for style, agent, estimate in part:
            parts.append(_mark(style, agent, estimate, y + LANE / 2, across))
            y += LANE
        y += 8
    height = y + FOOT
    grid = [
        f'<line class="grid" x1="{across(t):.1f}" x2="{across(t):.1f}" y1="{HEAD}" y2="{y}"/>'
        f'<text class="tick" x="{across(t):.1f}" y="{height - 8}" text-anchor="middle">{t:.4g}</text>'
        for t in axis_ticks(low, high, 7)
    ]
    keys = dict.fromkeys((style, agent) for _, part in rows for style, agent, _ in part)
    return Drawing(title, width, height, "".join(grid + parts), list(keys), note)


def slopes(
    title: str,
    ends: tuple[str, str],
    rows: Sequence[tuple[str, str, Estimate, Estimate]],
    note: str = "",
    width: int = 400,
    common: bool = True,
) -> Drawing:
    """A line for each agent from its estimate on the left to that on the right.

    Args:
        title: What is estimated.
        ends: What stands on both sides.
        rows: A style, a name, and the estimates on the left and on the right.
        note: A sentence under the title.
        width: Of the drawing.
        common: Whether both sides have one axis.
    """
    top, foot = 34.0, max(240.0, 34 + 24.0 * len(rows))
    columns = [[both[side] for _, _, *both in rows] for side in (0, 1)]
    axes = [_Upright([e for column in columns for e in column], top, foot)] * 2
    if not common:
        axes = [_Upright(column, top, foot) for column in columns]
    edges = TICKS, width - NAMES - (0 if common else TICKS)
    sides = edges[0] + 26.0, edges[1] - 26.0
    parts = [axes[0].ticks(edges[0] - 7, "end", edges if common else (edges[0], sides[0] + 20))]
    parts += [] if common else [axes[1].ticks(edges[1] + 7, "start", (sides[1] - 20, edges[1]))]
    for x, text, anchor in zip((sides[0] - 26, sides[1] + 26), ends, ("start", "end"), strict=True):
        parts.append(
            f'<text class="name" x="{x}" y="14" text-anchor="{anchor}">'
            f"{html.escape(_cut(text, (sides[1] - sides[0]) / 2))}<title>{html.escape(text)}</title></text>"
        )
    labels = _apart([axes[1].y(second.value) for *_, second in rows], 17.0)
    for i, (style, name, *both) in enumerate(rows):
        # Side by side, or intervals that are alike would hide each other.
        places = [side + 5.0 * (i - (len(rows) - 1) / 2) for side in sides]
        points = [(x, axis.y(e.value)) for x, axis, e in zip(places, axes, both, strict=True)]
        path = "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<path class="curve thin {style}" d="M{path}"/>')
        parts += [axis.mark(style, name, e, x) for axis, e, x in zip(axes, both, places, strict=True)]
        parts.append(
            f'<text class="name" x="{width - NAMES + 12}" y="{labels[i] + 4:.1f}">'
            f"{html.escape(_cut(name, NAMES - 14))}<title>{html.escape(name)}</title></text>"
            f'<circle class="{style}" cx="{width - NAMES + 4}" cy="{labels[i]:.1f}" r="3"/>'
        )
    return Drawing(title, width, max(foot, *labels) + 12, "".join(parts), (), note)


class _Upright:
    """An upright axis on which estimates lie."""

    def __init__(self, estimates: Sequence[Estimate], top: float, foot: float):
        values = [v for e in estimates for v in (e.value, e.low, e.high) if v is not None]
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        span = (high - low) or abs(high) or 1.0
        self.low, self.high, self.top, self.foot = low - 0.06 * span, high + 0.06 * span, top, foot

    def y(self, value: float) -> float:
        return self.foot - (self.foot - self.top) * (value - self.low) / (self.high - self.low)

    def ticks(self, x: float, anchor: str, span: tuple[float, float]) -> str:
        """The numbers at `x`, with lines over a span."""
        return "".join(
            f'<line class="grid" x1="{span[0]}" x2="{span[1]}" y1="{self.y(t):.1f}" y2="{self.y(t):.1f}"/>'
            f'<text class="tick" x="{x}" y="{self.y(t) + 4:.1f}" text-anchor="{anchor}">{t:.4g}</text>'
            for t in axis_ticks(self.low, self.high, 6)
        )

    def mark(self, style: str, name: str, estimate: Estimate, x: float) -> str:
        """A point and its bounds."""
        bounds = ""
        if estimate.low is not None and estimate.high is not None:
            bounds = (
                f'<line class="error {style}" x1="{x:.1f}" x2="{x:.1f}" y1="{self.y(estimate.low):.1f}" '
                f'y2="{self.y(estimate.high):.1f}"/>'
            )
        return (
            f'{bounds}<circle class="{style}" cx="{x:.1f}" cy="{self.y(estimate.value):.1f}" r="4">'
            f"<title>{html.escape(name)}: {html.escape(spelled(estimate))}</title></circle>"
        )


def matrix(
    title: str,
    names: Sequence[str],
    shares: Sequence[Sequence[float | None]],
    sides: Sequence[Sequence[int]],
    note: str = "",
) -> Drawing:
    """Probabilities that what stands in a row is above what stands in a column.

    Args:
        title: What they are of.
        names: Of rows and columns.
        shares: A row each; None on the diagonal and where nothing is known.
        sides: 1 where a row is known to be above a column, -1 below, 0 otherwise.
        note: A sentence under the title.
    """
    size = len(names)
    width, top = LABELS + SIDE * size, 24
    parts = []
    for i, name in enumerate(names):
        y = top + SIDE * i
        parts.append(
            f'<text class="name" x="{LABELS - 8}" y="{y + SIDE / 2 + 4}" text-anchor="end">'
            f"{html.escape(_cut(f'{name} {i + 1}', LABELS - 12))}</text>"
            f'<text class="tick" x="{LABELS + SIDE * (i + 0.5)}" y="{top - 8}" '
            f'text-anchor="middle">{i + 1}</text>'
        )
        for k, share in enumerate(shares[i]):
            if share is None:
                continue
            kind = {1: "up", -1: "down"}.get(sides[i][k], "flat")
            strength = 0.08 + 0.5 * abs(2 * share - 1)
            x = LABELS + SIDE * k
            weight = ' class="strong"' if sides[i][k] else ""
            parts.append(
                f'<rect class="{kind}" x="{x + 1}" y="{y + 1}" width="{SIDE - 2}" height="{SIDE - 2}" rx="4" '
                f'fill-opacity="{strength:.2f}"/><text{weight} x="{x + SIDE / 2}" y="{y + SIDE / 2 + 4}" '
                f'text-anchor="middle">{share:.2f}</text>'
            )
    return Drawing(title, width, top + SIDE * size, "".join(parts), note=note)


def _forest_row(
    y: float,
    style: str,
    name: str,
    estimate: Estimate | None,
    width: int,
    across: Callable[[float], float],
) -> str:
    said = spelled(estimate)
    room = width - 2 * EDGE - LETTER * len(said) - 8
    parts = [
        f'<text class="name" x="{EDGE}" y="{y + 13}">{html.escape(_cut(name, room))}'
        f"<title>{html.escape(name)}</title></text>"
        f'<text class="tick" x="{width - EDGE}" y="{y + 13}" text-anchor="end">{html.escape(said)}</text>'
    ]
    return "".join([*parts, _mark(style, name, estimate, y + 25, across)])


def _mark(
    style: str, name: str, estimate: Estimate | None, y: float, across: Callable[[float], float]
) -> str:
    """A point and its bounds, which tell their numbers to a pointer that rests on them."""
    if estimate is None:
        return ""
    bounds = ""
    if estimate.low is not None and estimate.high is not None:
        bounds = (
            f'<line class="error {style}" x1="{across(estimate.low):.1f}" '
            f'x2="{across(estimate.high):.1f}" y1="{y:g}" y2="{y:g}"/>'
        )
    return (
        f'{bounds}<circle class="{style}" cx="{across(estimate.value):.1f}" cy="{y:g}" r="4">'
        f"<title>{html.escape(name)}: {html.escape(spelled(estimate))}</title></circle>"
    )


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """Places moved as little as lets each keep a distance from the next: from the top down, then back."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    found = list(places)
    for above, below in pairwise(order):
        found[below] = max(found[below], found[above] + gap)
    middle = sum(found[i] - places[i] for i in order) / max(1, len(order))
    return [place - middle for place in found]


def _cut(text: str, room: float) -> str:
    most = max(4, int(room / BOLD))
    if len(text) <= most:
        return text
    # Names that begin alike are told apart by their ends.
    end = (most - 1) // 3
    return f"{text[: most - 1 - end]}…{text[-end:] if end else ''}"
