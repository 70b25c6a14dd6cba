"""The tables of a bench, once: what the page, Markdown, LaTeX, CSV and the console print."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unirl_env.bench.page import costs
from unirl_env.bench.page.cells import Cell, Table, amount, number, p_value, spelled
from unirl_env.bench.page.findings import Findings, find
from unirl_env.bench.page.numbers import PERCENT, STATISTICS, Estimate, Pair
from unirl_env.bench.page.reading import Bench, Row, as_bench
from unirl_env.bench.page.resolved import with_settings
from unirl_env.errors.masks import hide


def table(
    rows: Iterable[Mapping[str, Any]], bench: Mapping[str, Any], folder: Path | None = None
) -> list[Table]:
    """The tables of a bench, for a console or elsewhere.

    Args:
        rows: The lines of `results.jsonl`.
        bench: What is in `bench.json`.
        folder: Where runs have their folders, for the settings that they wrote down; None leaves these out.

    Example:
        >>> [each.name for each in table([], {})]
        []
    """
    known = as_bench(rows, bench)
    return tables(find(known if folder is None else with_settings(known, folder)))


def tables(found: Findings) -> list[Table]:
    """All tables that have rows."""
    made = [
        ranking(found),
        tasks(found),
        pairs(found),
        thresholds(found),
        failures(found.bench),
        settings(found.bench),
        measured(found),
        pairs_by_task(found),
    ]
    return [each for each in made if each.rows]


def ranking(found: Findings) -> Table:
    """Agents over all tasks that they share."""
    bench, rows = found.bench, []
    for agent in found.agents:
        mine = [row for row in bench.rows if row.agent == agent]
        failed = sum(not row.done for row in mine)
        rows.append(
            [
                Cell(bench.agents[agent].title, strong=_above_all(found, agent)),
                *(_estimate(found.ranking[name].get(agent)) for name in STATISTICS),
                Cell(_configuration(mine, bench.agents[agent].tuned)),
                Cell(str(len(mine))),
                Cell(str(failed)),
            ]
        )
    head = ["agent", *STATISTICS.values(), "configuration", "runs", "failed"]
    return Table("ranking", "Ranking", head, rows if found.shared else [], _ranking_note(found))


def tasks(found: Findings) -> Table:
    """The mean score of each agent on each task."""
    bench, rows = found.bench, []
    for name, task in bench.tasks.items():
        cells = [Cell(task.title, mark=task.score + (f", {task.unit}" if task.unit else ""))]
        for agent in found.agents:
            mine = bench.cell(name, agent)
            failed = sum(not row.done for row in mine)
            mark = f"{failed} of {len(mine)} failed" if failed else ""
            cells.append(_estimate(found.cells.get((name, agent)), found.best.get(name) == agent, mark))
        rows.append(cells)
    note = (
        f"Mean score over seeds with its {PERCENT} interval. Bold is an agent that is above every other one "
        "on that task by a paired interval that excludes zero after Holm's correction over all tasks and "
        "pairs. A run that failed counts as the untrained policy."
    )
    head = ["task", *(bench.agents[a].title for a in found.agents)]
    return Table("tasks", "The answer per task", head, rows if found.agents else [], note)


def pairs(found: Findings) -> Table:
    """Every two agents over the shared tasks."""
    rows = [
        [
            Cell(found.bench.agents[a].title),
            Cell(found.bench.agents[b].title),
            _estimate(found.improvement.get((a, b))),
            *_difference(pair),
        ]
        for (a, b), pair in found.pairs.items()
    ]
    note = (
        "Over the tasks that all agents have. P is the probability that a run of the first scores above a "
        "run of the second on the same task. The difference is of normalised scores, paired by seed; the "
        f"corrected interval and p-value are Holm's over all pairs at {PERCENT}. Bold excludes zero."
    )
    head = ["first", "second", "P(first above second)", *_DIFFERENCE]
    return Table("pairs", "Every two agents", head, rows, note, texts=2)


def pairs_by_task(found: Findings) -> Table:
    """Every two agents on every task."""
    rows = [
        [
            Cell(found.bench.tasks[task].title),
            Cell(found.bench.agents[a].title),
            Cell(found.bench.agents[b].title),
            *_difference(pair),
        ]
        for (task, a, b), pair in found.within.items()
    ]
    note = "Differences of scores, paired by seed; Holm's correction is over all rows of this table."
    head = ["task", "first", "second", *_DIFFERENCE]
    return Table("pairs_by_task", "Every two agents on each task", head, rows, note, texts=3, long=True)


def thresholds(found: Findings) -> Table:
    """What it costs to reach a task's threshold."""
    bench, rows = found.bench, []
    axes = costs.axes(bench)
    for name, task in bench.tasks.items():
        for agent in found.agents:
            known = {axis: costs.time_to(bench, name, agent, axis) for axis in axes}
            first = next((each for each in known.values() if each is not None), None)
            if first is None:
                continue
            share, _ = first
            count = len(bench.cell(name, agent))
            medians = [None if each is None else each[1] for each in known.values()]
            rows.append(
                [
                    Cell(task.title),
                    Cell(bench.agents[agent].title),
                    Cell(number(task.threshold)),
                    Cell(f"{round(share * count)} of {count}"),
                    *(_cost(median) for median in medians),
                ]
            )
    note = (
        "Median cost until the normalised score first reaches the task's threshold, by Kaplan and Meier: a "
        "run that has not got there by its end is censored there, and one that failed at the end of the "
        "longest. Not reached: in fewer than half of the runs."
    )
    head = ["task", "agent", "threshold", "reached", *(costs.AXES[axis] for axis in axes)]
    return Table("thresholds", "What it costs to get there", head, rows, note, texts=2)


def by_axis(made: Table) -> dict[str, Table]:
    """The table of thresholds as one of tasks by agents for each cost."""
    agents = list(dict.fromkeys(row[1].text for row in made.rows))
    lines: dict[tuple[str, str], dict[str, Sequence[Cell]]] = {}
    for row in made.rows:
        lines.setdefault((row[0].text, row[2].text), {})[row[1].text] = row
    found = {}
    for place, axis in enumerate(made.head[4:], start=4):
        rows = []
        for (task, threshold), mine in lines.items():
            cells = [Cell(task, mark=f"to {threshold}")]
            for agent in agents:
                row = mine.get(agent, [Cell("-")] * len(made.head))
                share, _, count = row[3].text.partition(" of ")
                cells.append(replace(row[place], mark="" if share == count else f"{row[3].text} got there"))
            rows.append(cells)
        found[axis] = Table(f"thresholds_{axis}", f"{made.title}: {axis}", ["task", *agents], rows)
    return found


MEASURED = {
    "regret": "regret",
    "heldout/reward": "reward, held-out prompts",
    "heldout/heldout": "held-out reward, held-out prompts",
    "train/reward": "reward, training prompts",
    "train/heldout": "held-out reward, training prompts",
    "kl": "KL to the base",
    "drift/kl": "KL to the base, nats an episode",
    "drift/velocity_norm": "velocities, to the base's",
    "drift/velocity_change": "their change",
    "diversity": "diversity",
    "hacking": "hacking index",
    "failed_scores": "failed scores",
    "episodes": "episodes",
    "function_evaluations": "function evaluations",
    "tokens": "tokens",
    "seconds": "seconds",
    "peak_memory_bytes": "peak memory, MiB",
}
"""What is known by name, in the order of columns; seconds of phases and whatever else there is follow."""
UNSEEN = ("base", "reference")


def measured(found: Findings) -> Table:
    """What was measured of each agent on each task, besides the score."""
    bench, rows = found.bench, []
    names = measured_names(bench.rows)
    for task in bench.tasks:
        for agent in found.agents:
            mine = [row for row in bench.cell(task, agent) if row.done]
            if mine:
                cells = [metric(mine, name) for name in names]
                rows.append([Cell(bench.tasks[task].title), Cell(bench.agents[agent].title), *cells])
    head = ["task", "agent", *(metric_title(name) for name in names)]
    note = "Means over the runs that came to their end."
    return Table("measured", "What else was measured", head, rows if names else [], note, texts=2, long=True)


def measured_names(rows: Iterable[Row]) -> list[str]:
    """What any of the rows has measured, in the order of columns."""
    known = dict.fromkeys(name for row in rows if row.done for name in row.metrics if name not in UNSEEN)
    last = sorted(name for name in known if name not in MEASURED)
    return [*(name for name in MEASURED if name in known), *last]


def metric_title(name: str) -> str:
    """What a measured quantity is called."""
    group, _, part = name.partition("/")
    return MEASURED.get(name) or (f"seconds of {part}" if group == "seconds" else name.replace("_", " "))


def metric(rows: Sequence[Row], name: str) -> Cell:
    """The mean of what was measured over runs."""
    scale = 2.0**-20 if name.endswith("memory_bytes") else 1.0
    known = [scale * row.metrics[name] for row in rows if name in row.metrics]
    if not known:
        return Cell("-")
    value = Estimate(statistics.fmean(known), count=len(known))
    return Cell(number(value.value), value)


def failures(bench: Bench) -> Table:
    """Every run that did not come to its end with a score."""
    rows = [
        [
            Cell(bench.tasks[row.task].title),
            Cell(bench.agents[row.agent].title),
            Cell(str(row.seed)),
            Cell(row.status),
            Cell(hide(row.error) or "no number at the end"),
            Cell(row.folder, link=row.folder),
        ]
        for row in bench.rows
        if not row.done
    ]
    head = ["task", "agent", "seed", "status", "what was said", "folder"]
    return Table("failures", "Failures", head, rows, "Runs that raised, diverged or ended early.", texts=6)


def settings(bench: Bench) -> Table:
    """Settings that are not the same for all agents."""
    known = {label: flat(agent.settings) for label, agent in bench.agents.items()}
    names = dict.fromkeys(name for values in known.values() for name in values)
    rows = []
    for name in names:
        values = [known[label].get(name, "-") for label in bench.agents]
        if len(set(values)) > 1:
            rows.append([Cell(name), *(Cell(value) for value in values)])
    head = ["setting", *(agent.title for agent in bench.agents.values())]
    note = "What the agents were given that is not the same for all; a dash is what was not given."
    rows = rows if len(bench.agents) > 1 else []
    return Table("settings", "Settings that differ", head, rows, note, texts=len(head))


_DIFFERENCE = ("difference", "corrected interval", "corrected p", "seeds")


def _difference(pair: Pair) -> list[Cell]:
    return [
        Cell(spelled(pair.difference, sign=True), pair.difference),
        Cell(spelled(pair.corrected, sign=True), pair.corrected, strong=pair.side != 0),
        Cell(p_value(pair.adjusted), Estimate(pair.adjusted)),
        Cell(str(pair.count)),
    ]


def _cost(median: Estimate | None) -> Cell:
    return Cell("not reached") if median is None else Cell(spelled(median, write=amount), median)


def _estimate(estimate: Estimate | None, strong: bool = False, mark: str = "") -> Cell:
    return Cell(spelled(estimate), estimate, strong, mark)


def _above_all(found: Findings, agent: str) -> bool:
    others = [other for other in found.agents if other != agent]
    return bool(others) and all(found.side(agent, other) > 0 for other in others)


def _configuration(rows: Sequence[Row], tuned: bool) -> str:
    kinds = sorted({row.configuration for row in rows}) or ["tuned" if tuned else "default"]
    return " and ".join(kinds)


def _ranking_note(found: Findings) -> str:
    over = "the task" if len(found.shared) == 1 else f"{len(found.shared)} tasks"
    left = len(found.bench.tasks) - len(found.shared)
    missing = f" {left} more are left out, because not all agents have runs there." if left else ""
    return (
        f"Normalised scores over {over}: 0 is the untrained policy, 1 the task's reference. IQM is the mean "
        f"of the middle half of all runs. Intervals are {PERCENT}, stratified by task. Bold is an agent that "
        f"is above every other one after Holm's correction. A run that failed counts as 0.{missing}"
    )


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings under dotted names; what two ways of writing give the same name is one setting."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return found
