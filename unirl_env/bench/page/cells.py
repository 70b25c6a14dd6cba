"""A table as everything prints it, and how numbers are written there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unirl_env.bench.page.numbers import Estimate


@dataclass(frozen=True)
class Cell:
    """A place in a table.

    Attributes:
        text: What stands there; of an estimate `text` is made from it.
        estimate: The number, with bounds where there are any.
        strong: Shown in bold.
        mark: A remark, such as how many runs failed.
        link: Where it leads on the page: a path below the bench's folder.
    """

    text: str = ""
    estimate: Estimate | None = None
    strong: bool = False
    mark: str = ""
    link: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: Of its files.
        title: Of its section.
        head: Of its columns.
        rows: Of cells, as many as columns.
        note: What the numbers are.
        texts: How many columns at the left hold text.
        long: Whether it is left out where there is little room: on a console and in LaTeX.
    """

    name: str
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    texts: int = 1
    long: bool = False


def number(value: float | None) -> str:
    """A number for people: three places, or three digits where that says nothing or too much."""
    if value is None:
        return "-"
    size = abs(value)
    if value == 0 or 0.001 <= size < 1000:
        return f"{value:.3f}"
    return f"{value:,.0f}" if 1000 <= size < 1e7 else f"{value:.2e}"


def amount(value: float | None) -> str:
    """A cost for people: whole from a hundred on, three digits below."""
    if value is None:
        return "-"
    if math.isinf(value):
        return "∞"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spelled(
    estimate: Estimate | None, sign: bool = False, write: Callable[[float | None], str] = number
) -> str:
    """An estimate with its bounds, as every table prints it.

    Args:
        estimate: None is a dash.
        sign: Write a plus before what is above zero.
        write: How a number is written.
    """
    if estimate is None:
        return "-"
    plus = "+" if sign and estimate.value > 0 else ""
    if estimate.low is None or estimate.high is None:
        return plus + write(estimate.value)
    return f"{plus}{write(estimate.value)} [{write(estimate.low)}, {write(estimate.high)}]"


def p_value(value: float) -> str:
    """A p-value for people."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"
