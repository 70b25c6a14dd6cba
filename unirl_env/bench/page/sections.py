"""The sections of a bench's page, as HTML."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from unirl_env.bench.page import costs, tables
from unirl_env.bench.page.cells import Cell, Table, number, p_value, spelled
from unirl_env.bench.page.figures import Figure, links, style
from unirl_env.bench.page.findings import Findings
from unirl_env.bench.page.formats import as_csv, as_html
from unirl_env.bench.page.numbers import Pair
from unirl_env.bench.page.words import evaluated, nothing, paragraphs, said, warnings
from unirl_env.errors.masks import hide

MANY = 6
"""Agents above which charts share a legend."""
LARGE = 4
"""Tasks up to which their details are open at first."""


def finding(found: Findings) -> str:
    """What is known, and what must be known before it is believed."""
    items = "".join(
        f'<li class="warn"><b>{html.escape(head)}</b>{html.escape(words)}</li>'
        for head, words in warnings(found)
    )
    first, parts, last = said(found)
    shown = paragraphs(first)
    if parts:
        opened = " open" if len(parts) <= LARGE else ""
        shown += f"<details{opened}><summary>Task by task</summary>{paragraphs(parts)}</details>"
    shown = f'<div class="finding">{shown}{paragraphs(last)}</div>'
    return shown + (f'<ul class="findings">{items}</ul>' if items else "")


def charts(figures: Sequence[Figure], palette: Mapping[str, str], kind: str = "") -> str:
    """Figures beside each other, or nothing."""
    inner = "".join(figure.html(palette) for figure in figures)
    return f'<div class="charts {kind}">{inner}</div>' if inner else ""


def table(made: Table, fine: str = "") -> str:
    """A table with a sentence in small print and its file, or nothing."""
    if not made.rows:
        return ""
    print_ = f'<p class="fine">{html.escape(fine)}</p>' if fine else ""
    files = links({f"{made.name}.csv": as_csv(made)})
    return as_html(made, print_ + files, "texts-of" if made.texts > 2 else "")


def matrix(found: Findings, figure: Figure | None, made: Table, palette: Mapping[str, str]) -> str:
    """Every agent against every other one."""
    if len(found.agents) < 2 or not found.shared:
        return ""
    names = [html.escape(found.bench.agents[a].title) for a in found.agents]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = []
    for a, name in zip(found.agents, names, strict=True):
        cells = "".join(_against(found, a, b) for b in found.agents)
        rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    files = {f"{made.name}.csv": as_csv(made)} if made.rows else {}
    if figure is not None:
        files |= {f"{figure.name}.csv": figure.csv, f"{figure.name}.svg": figure.svg(palette)}
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Every two agents"><table class="against">'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{links(files)}"
    )


def switch(name: str, panels: Mapping[str, str]) -> str:
    """Panels of which one is seen, chosen without a script.

    Args:
        name: Of the switch, a word.
        panels: HTML by what is written on the button.
    """
    if len(panels) < 2:
        return "".join(panels.values())
    parts, rules, shown = [], [], []
    for i, (title, content) in enumerate(panels.items()):
        checked = " checked" if i == 0 else ""
        parts.append(
            f'<input type="radio" name="{name}" id="{name}{i}"{checked}>'
            f'<label for="{name}{i}">{html.escape(title)}</label>'
        )
        rules.append(f"#{name}{i}:checked ~ .{name}{i} {{ display: block; }}")
        shown.append(f'<div class="panel {name}{i}">{content}</div>')
    return f'<style>{" ".join(rules)}</style><div class="switch">{"".join(parts + shown)}</div>'


def details(found: Findings, forests: Mapping[str, Figure], palette: Mapping[str, str]) -> str:
    """Each task: why it is there, its marks, and what was measured."""
    parts = []
    whole, pairs = tables.measured(found), tables.pairs_by_task(found)
    for name, task in found.bench.tasks.items():
        known = [
            ("untrained policy", task.base),
            ("reference", task.reference),
            ("threshold", task.threshold),
        ]
        facts = ", ".join(f"{text} {number(value)}" for text, value in known if value is not None)
        if task.threshold is not None:
            facts += " (normalised)"
        why = task.why if not task.why or task.why[-1] in ".!?" else f"{task.why}."
        lead = [
            why,
            f"Score: {task.score}." if facts else "",
            f"{facts[:1].upper()}{facts[1:]}." if facts else "",
            evaluated([row for row in found.bench.rows if row.task == name]),
        ]
        content = [f'<p class="lead">{html.escape(" ".join(text for text in lead if text))}</p>']
        if name in forests:
            content.append(forests[name].html(palette))
        content += [_measured_of(found, whole, name), _pairs_of(pairs, task.title)]
        code = f"<code>{html.escape(name)}</code>" if name != task.title else ""
        opened = " open" if len(found.bench.tasks) <= LARGE else ""
        parts.append(
            f'<details class="task"{opened}><summary><h3>{html.escape(task.title)}</h3>{code}</summary>'
            f'<div class="inside">{"".join(content)}</div></details>'
        )
    files = {f"{each.name}.csv": as_csv(each) for each in (whole, pairs) if each.rows}
    return "".join(parts) + (links(files) if files else "")


def provenance(known: Mapping[str, Any]) -> str:
    """Versions, hashes, hardware and the command, as they stand in `bench.json`."""
    parts = [
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(hide(value))}</dd>"
        for name, value in _flat(known)
        if value
    ]
    return f'<dl class="provenance">{"".join(parts)}</dl>' if parts else ""


def tuning(found: Findings) -> str:
    """How settings were searched for, or that they were not."""
    if found.bench.tune is None:
        return ""
    said = found.bench.tune if isinstance(found.bench.tune, Mapping) else {"budget": found.bench.tune}
    return provenance(said)


def reason(found: Findings) -> str:
    """Why no agent is compared, as a paragraph, or nothing."""
    said = nothing(found)
    return f'<p class="lead">{html.escape(said)}</p>' if said else ""


def thresholds(made: Table) -> str:
    """What it costs to get to each task's threshold, one cost at a time."""
    if not made.rows:
        return ""
    panels = {axis: as_html(each) for axis, each in tables.by_axis(made).items()}
    return switch("cost", panels) + links({f"{made.name}.csv": as_csv(made)})


def axes(found: Findings, made: Mapping[str, Sequence[Figure]], palette: Mapping[str, str]) -> str:
    """Curves of all tasks against one cost at a time; many agents have one legend for all of them."""
    many = len(found.agents) > MANY
    panels = {
        costs.AXES[axis]: charts(figures, palette, "bare" if many else "")
        for axis, figures in made.items()
        if figures
    }
    keys = "".join(
        f'<span class="key {style(found, a)}">{html.escape(found.bench.agents[a].title)}</span>'
        for a in found.agents
    )
    legend = f'<div class="legend shared">{keys}</div>' if many and panels else ""
    return legend + switch("axis", panels)


def _against(found: Findings, a: str, b: str) -> str:
    if a == b:
        return '<td class="self"></td>'
    share, pair = found.improvement.get((a, b)), found.pairs.get((a, b))
    sign = 1
    if pair is None:
        pair, sign = found.pairs.get((b, a)), -1
    kind = {1: "up", -1: "down"}.get(found.side(a, b), "flat")
    said = "-" if share is None else f"{share.value:.2f}"
    if share is not None and share.low is not None and share.high is not None:
        said += f"</b><span>[{share.low:.2f}, {share.high:.2f}]</span>"
    else:
        said += "</b>"
    return f'<td class="{kind}"><b>{said}{_difference(pair, sign)}</td>'


def _difference(pair: Pair | None, sign: int) -> str:
    if pair is None:
        return "<span>no common seeds</span>"
    estimate = pair.corrected or pair.difference
    if sign < 0:
        low = None if estimate.high is None else -estimate.high
        high = None if estimate.low is None else -estimate.low
        estimate = replace(estimate, value=-estimate.value, low=low, high=high)
    value, _, bounds = spelled(estimate, sign=True).partition(" ")
    return f"<span>{value}</span><span>{bounds}</span><span>p {p_value(pair.adjusted)}</span>"


def _pairs_of(whole: Table, title: str) -> str:
    """Of the table of every two agents on every task the rows of one task."""
    rows = [row[1:] for row in whole.rows if row[0].text == title]
    if not rows:
        return ""
    shown = as_html(Table("pairs_by_task", f"Every two agents, {title}", whole.head[1:], rows, texts=2))
    return f"<details><summary>Every two agents on this task</summary>{shown}</details>"


def _measured_of(found: Findings, whole: Table, task: str) -> str:
    """Of everything measured what belongs to one task: a line for each quantity, a column for each agent."""
    bench, title = found.bench, found.bench.tasks[task].title
    mine = {row[1].text: row for row in whole.rows if row[0].text == title}
    if not mine:
        return ""
    rows = []
    for place, name in enumerate(whole.head[2:], start=2):
        cells = [row[place] for row in mine.values()]
        if any(cell.text != "-" for cell in cells):
            rows.append([Cell(name), *cells])
    failed = {
        agent.title: sum(not row.done for row in bench.cell(task, label))
        for label, agent in bench.agents.items()
    }
    rows.append([Cell("failed runs"), *(Cell(str(failed[name])) for name in mine)])
    return as_html(Table("measured", f"Measured, {title}", ["mean of finished runs", *mine], rows))


def _flat(known: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for key, value in known.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found += _flat(value, f"{name} / ")
        elif isinstance(value, list) and all(isinstance(part, str) for part in value):
            found.append((name, " ".join(value)))
        else:
            found.append((name, value if isinstance(value, str) else json.dumps(value, default=str)))
    return found
