"""The page of two benches side by side: whether they rank agents alike, and what differs between them."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unirl_env.bench.page import figures, numbers, sections
from unirl_env.bench.page.both import Both, common_tasks, kinds, ranks, read_both
from unirl_env.bench.page.cells import Cell, Table, p_value, spelled
from unirl_env.bench.page.comparison_words import facts, sentences, warnings_of
from unirl_env.bench.page.drawings import forest, slopes, strips
from unirl_env.bench.page.figures import BOUNDS, Figure, links
from unirl_env.bench.page.formats import as_csv, csv_text
from unirl_env.bench.page.numbers import PERCENT, Estimate
from unirl_env.bench.page.reading import Bench
from unirl_env.bench.page.resolved import with_settings
from unirl_env.bench.page.tables import flat
from unirl_env.bench.page.words import coverage_of, joined, paragraphs
from unirl_env.bench.page.write import style_of
from unirl_env.run.report.frame import header, section, write_page

if TYPE_CHECKING:
    from unirl_env.bench.compare import Change, Comparison, Side


def write_comparison(path: Path, sides: tuple[Side, Side], found: Comparison) -> Path:
    """Write the page of two benches.

    Args:
        path: The file.
        sides: The benches.
        found: What they have in common.

    Returns:
        `path`.
    """
    both = read_both(sides, found)
    title = f"{both.names[0]} and {both.names[1]}"
    ranking, changes, settings = _ranking(both), _changes(both), _settings(both, sides)
    body = [
        header(title, facts(both)),
        _finding(both, sides),
        section(
            "The two rankings",
            sections.charts(_slopes(both), both.palette, "one")
            + sections.table(ranking, coverage_of(_estimates(both))),
            ranking.note,
        ),
        section(changes.title, _together(both, changes), changes.note),
        section(settings.title, sections.table(settings), settings.note),
        *(
            section(f"Where {name} comes from", sections.provenance(bench.provenance))
            for name, bench in zip(both.names, both.benches, strict=True)
        ),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_page(path, title, "".join(body), style_of(both.palette))


def _finding(both: Both, sides: tuple[Side, Side]) -> str:
    items = "".join(
        f'<li class="warn"><b>{html.escape(head)}</b>{html.escape(words)}</li>'
        for head, words in warnings_of(both, sides)
    )
    said = f'<div class="finding">{paragraphs(sentences(both))}</div>'
    return said + (f'<ul class="findings">{items}</ul>' if items else "")


def _slopes(both: Both) -> list[Figure]:
    if both.ranked is None:
        return []
    means = [found.ranking["mean"] for found in both.ranked]
    agents = [a for a in both.ranked[0].agents if a in means[0] and a in means[1]]
    rows = [(both.style(a), both.title(a), means[0][a], means[1][a]) for a in agents]
    alike = both.found.tasks[0] == both.found.tasks[1]
    note = "Mean normalised score over all tasks: 0 is the untrained policy, 1 the tasks' references."
    note += "" if alike else " The tasks are others, and each side has its own axis."
    drawing = slopes("From one to the other", both.names, rows, note, common=alike)
    lines = [
        [name, both.title(a), *figures.bounds(mean[a])]
        for name, mean in zip(both.names, means, strict=True)
        for a in agents
    ]
    return [Figure("rankings", drawing, csv_text(["bench", "agent", *BOUNDS], lines))]


def _ranking(both: Both) -> Table:
    head = ["agent", *(f"{what} in {name}" for name in both.names for what in ("rank", "mean"))]
    rows = []
    if both.ranked is not None:
        placed = [ranks(found) for found in both.ranked]
        configured = [kinds(found.bench) for found in both.ranked]
        for agent in both.ranked[0].agents:
            row = [Cell(both.title(agent))]
            for i, found in enumerate(both.ranked):
                place, best, worst = placed[i][agent]
                mean = found.ranking["mean"][agent]
                rank = Cell(f"{place} [{best}, {worst}]", Estimate(place, best, worst))
                row += [rank, Cell(spelled(mean), mean)]
            how = [each[agent] for each in configured]
            parts = [f"{one} in {name}" for one, name in zip(how, both.names, strict=True)]
            rows.append([*row, Cell(how[0] if how[0] == how[1] else ", ".join(parts))])
    note = (
        "Ranks are by the mean of normalised scores over all tasks. In brackets, the best and the worst rank "
        f"that the paired differences leave to an agent, all of them together at {PERCENT}."
    )
    return Table("ranks", "The two rankings", [*head, "configuration"], rows, note)


def _together(both: Both, changes: Table) -> str:
    """The differences: drawn, as a table of tasks by agents, and as a file that has everything."""
    if not changes.rows:
        return ""
    agents = [a for a in both.found.agents if any(c.agent == a for c in both.found.changes)]
    lines: dict[str, dict[str, Cell]] = {}
    for task, agent, difference, *_ in changes.rows:
        lines.setdefault(task.text, {})[agent.text] = difference
    titles = [both.title(a) for a in agents]
    rows = [[Cell(task), *(mine.get(t, Cell("-")) for t in titles)] for task, mine in lines.items()]
    shown = Table("differences_by_agent", changes.title, ["task", *titles], rows)
    drawn = "".join(sections.charts([figure], both.palette, "one") for figure in _moved(both))
    covered = _covers(both.found.changes)
    return drawn + sections.table(shown, covered) + links({f"{changes.name}.csv": as_csv(changes)})


def _changes(both: Both) -> Table:
    rows = [
        [
            Cell(both.task(change.task)),
            Cell(both.title(change.agent)),
            Cell(
                spelled(known := numbers.estimate(change.pair.difference, change.pair.n), sign=True),
                known,
                strong=change.sure,
            ),
            Cell(_p(change.pair.p_value)),
            Cell(_p(change.corrected)),
            Cell(str(change.pair.n)),
        ]
        for change in sorted(both.found.changes, key=lambda change: _order(both, change))
    ]
    note = (
        f"What stands in {both.names[1]} less what stands in {both.names[0]}, normalised scores, paired by "
        f"seed, with the {PERCENT} interval of each comparison alone. Bold holds against Holm's correction "
        "over all tasks and agents."
    )
    head = ["task", "agent", "difference", "p", "corrected p", "seeds"]
    return Table("differences", "Common tasks", head, rows, note, texts=2)


def _order(both: Both, change: Change) -> tuple[bool, int, int]:
    """The mean over tasks first, then as the suite has its tasks and the bench its agents."""
    tasks, agents = list(both.benches[0].tasks), list(both.benches[0].agents)
    return bool(change.task), tasks.index(change.task) if change.task else 0, agents.index(change.agent)


def _moved(both: Both) -> list[Figure]:
    """The differences as drawings: of all tasks together, and of each."""
    changes = both.found.changes
    if not changes:
        return []
    known = {(c.task, c.agent): numbers.estimate(c.pair.difference, c.pair.n) for c in changes}
    agents = [a for a in both.found.agents if any(c.agent == a for c in changes)]
    note = f"{both.names[1]} less {both.names[0]}, normalised. Zero: no difference."
    whole = common_tasks(changes)[0] if len(common_tasks(changes)) == 1 else ""
    rows = [(both.style(a), both.title(a), known.get((whole, a))) for a in agents]
    made = [
        Figure(
            "difference",
            forest(both.task(whole).capitalize(), rows, note, marks=[(0.0, "no difference")]),
            csv_text(["agent", *BOUNDS], [[title, *figures.bounds(e)] for _, title, e in rows]),
        )
    ]
    if whole:
        return made
    parts = [
        (both.task(t), [(both.style(a), both.title(a), known.get((t, a))) for a in agents])
        for t in both.benches[0].tasks
        if any((t, a) in known for a in agents)
    ]
    lines = [[task, title, *figures.bounds(e)] for task, part in parts for _, title, e in part]
    drawing = strips("Task by task", parts, note, shown=(0.0,))
    return [*made, Figure("differences_by_task", drawing, csv_text(["task", "agent", *BOUNDS], lines))]


def _settings(both: Both, sides: tuple[Side, Side]) -> Table:
    """What is not the same: of the benches, and of each agent."""
    one, other = (_asked(side.known) for side in sides)
    rows = [
        [Cell("the bench"), Cell(name), Cell(first), Cell(second)]
        for name, first, second in _unlike(one, other)
    ]
    common = [task for task in both.benches[0].tasks if task in both.benches[1].tasks]
    given = [_given(bench, side, common) for bench, side in zip(both.benches, sides, strict=True)]
    differing: dict[tuple[str, str, str], list[str]] = {}
    for agent in both.found.agents:
        for row in _unlike(given[0][agent], given[1][agent]):
            differing.setdefault(row, []).append(both.title(agent))
    every = len(both.found.agents)
    for row, agents in differing.items():
        who = "all agents" if len(agents) == every > 1 else joined(agents)
        rows.append([Cell(who), *map(Cell, row)])
    note = "What is not the same in both; a dash is what was not given."
    if common:
        note += f" Agents' settings are those of their runs on {both.task(common[0])}."
    return Table("settings", "Settings that differ", ["of", "setting", *both.names], rows, note, texts=4)


def _given(bench: Bench, side: Side, tasks: Sequence[str]) -> dict[str, dict[str, str]]:
    """The settings of each agent: of its runs on a common task, else what it was given over its recipes'.

    Of different tasks, most settings differ by what the tasks are.
    """
    entries = {entry.get("label"): entry for entry in side.known.get("agents") or ()}
    found = {}
    for label in bench.agents:
        entry = entries.get(label) or {}
        words = dict(word.partition("=")[::2] for word in entry.get("settings") or () if "=" in word)
        found[label] = flat({**words, "factor": entry.get("configuration") or {}})
    if tasks:
        told = with_settings(replace(bench, tasks={task: bench.tasks[task] for task in tasks}), side.folder)
        found = {label: flat(told.agents[label].settings) or found[label] for label in bench.agents}
    return found


def _unlike(first: Mapping[str, str], second: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """By name, what is not the same in both."""
    rows = [(name, first.get(name, "-"), second.get(name, "-")) for name in dict.fromkeys([*first, *second])]
    return [row for row in rows if row[1] != row[2]]


def _asked(known: Mapping[str, Any]) -> dict[str, str]:
    """What a bench was told, besides its agents."""
    suite = known.get("suite") or {}
    told = {
        "suite": suite.get("name"),
        "tasks": ", ".join(suite.get("tasks") or ()),
        "settings of the suite": " ".join(suite.get("settings") or ()),
        "settings": " ".join(known.get("settings") or ()),
        "seeds": ", ".join(map(str, known.get("seeds") or ())),
        "tune": known.get("tune") or "none",
    }
    sessions = (known.get("provenance") or {}).get("sessions") or [{}]
    return flat(told) | {
        f"version of {name}": v for name, v in flat(sessions[-1].get("versions") or {}).items()
    }


def _estimates(both: Both) -> list[Estimate]:
    return [e for found in both.ranked or () for e in found.ranking["mean"].values()]


def _covers(changes: Sequence[Change]) -> str:
    return coverage_of([numbers.estimate(change.pair.difference, change.pair.n) for change in changes])


def _p(value: float) -> str:
    return p_value(value) if math.isfinite(value) else "-"
