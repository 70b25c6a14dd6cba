"""Two benches side by side: each agent before and after, and whether both rank the agents alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unirl_env.bench.statistics import Interval, Paired, holm, kendall, paired, paired_over_tasks
from unirl_env.bench.stored import Scores, on_common_seeds, read_bench, scores
from unirl_env.errors import ConfigError

LEVEL = 0.95


@dataclass(frozen=True)
class Change:
    """Of an agent on a task that both benches have, or on all of these together.

    Attributes:
        agent: Its label.
        task: The task; "" for the mean over tasks.
        pair: The second bench's scores less the first one's, by seed.
        corrected: The p-value after Holm's correction over all tasks and agents; NaN for one seed.
    """

    agent: str
    task: str
    pair: Paired
    corrected: float


@dataclass(frozen=True)
class Comparison:
    """What two benches have in common.

    Attributes:
        changes: Of agents and tasks that both have.
        tau: Whether they rank the agents that both have alike; None with fewer than two.
        agents: Those.
    """

    changes: Sequence[Change]
    tau: Interval | None
    agents: Sequence[str]


def compare(first: Path, second: Path, console: Console) -> Comparison:
    """Hold two benches against each other, and print what came of it.

    Raises:
        ConfigError: If a folder is no bench's, or they have no agent in common.
    """
    names, known = [], []
    for folder in (first, second):
        bench, rows = read_bench(folder)
        names.append(bench["suite"]["name"])
        known.append(scores([row for row in rows if not row.get("baseline")] or rows))
    found = compared(*known)
    if not found.agents:
        raise ConfigError(
            f"Two benches must have agents in common, got {sorted(known[0])} in {first} and "
            f"{sorted(known[1])} in {second}; try benches of the same `agents=`."
        )
    if found.changes:
        console.print(_table(found.changes, first, second))
    if found.tau is not None:
        tau = found.tau
        console.print(
            f"Kendall's tau of the rankings of {len(found.agents)} agents ({', '.join(found.agents)}) on "
            f"{names[0]} in {first} and on {names[1]} in {second}: {_shown(tau)}. 1 is the same ranking, -1 "
            "the reverse; it speaks of these agents on these tasks.",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    return found


def compared(first: Scores, second: Scores) -> Comparison:
    """What scores of two benches have in common."""
    agents = sorted(first.keys() & second.keys())
    pairs: list[tuple[str, str, Paired]] = []
    for agent in agents:
        before, after = on_common_seeds(first[agent], second[agent])
        if not before:
            continue
        pairs += [(agent, task, paired(after[task], before[task], LEVEL)) for task in before]
        if len(before) > 1:
            pairs.append((agent, "", paired_over_tasks(after, before, LEVEL)))
    judged = [i for i, (_, _, pair) in enumerate(pairs) if math.isfinite(pair.p_value)]
    adjusted = dict(zip(judged, holm([pairs[i][2].p_value for i in judged]), strict=True)) if judged else {}
    changes = [Change(*each, adjusted.get(i, math.nan)) for i, each in enumerate(pairs)]
    return Comparison(changes, _tau(agents, first, second), agents)


def _tau(agents: Sequence[str], first: Scores, second: Scores) -> Interval | None:
    if len(agents) < 2:
        return None
    sides: list[Mapping[str, Mapping[str, list[float]]]] = []
    for side in (first, second):
        tasks = set.intersection(*(set(side[agent]) for agent in agents))
        if not tasks:
            return None
        sides.append({a: {task: list(side[a][task].values()) for task in sorted(tasks)} for a in agents})
    return kendall(sides[0], sides[1], LEVEL)


def _table(changes: Sequence[Change], first: Path, second: Path) -> Table:
    table = Table(title=f"{escape(str(second))} less {escape(str(first))}, normalised", title_justify="left")
    for name in ("agent", "task"):
        table.add_column(name, overflow="fold")
    for name in ("difference, 95 %", "p", "p corrected", "seeds"):
        table.add_column(name, justify="right")
    for change in changes:
        sure = change.corrected < 1 - LEVEL
        text = _shown(change.pair.difference, signed=True)
        table.add_row(
            escape(change.agent),
            escape(change.task or "mean over tasks"),
            f"[bold]{escape(text)}[/]" if sure else escape(text),
            _number(change.pair.p_value),
            _number(change.corrected),
            str(change.pair.n),
        )
    return table


def _shown(interval: Interval, signed: bool = False) -> str:
    form = "+.3f" if signed else ".3f"
    if not math.isfinite(interval.low):
        return f"{interval.estimate:{form}}"
    return f"{interval.estimate:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"
