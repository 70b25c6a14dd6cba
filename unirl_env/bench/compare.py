"""Two benches side by side: each agent before and after, and whether both rank the agents alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unirl_env.bench.statistics import Interval, Paired, holm, kendall, paired, paired_over_tasks
from unirl_env.bench.stored import Row, Scores, on_common_seeds, read_bench, scores, tasks_alone
from unirl_env.errors import ConfigError
from unirl_env.settings.fields import Settings, setting

LEVEL = 0.95


@dataclass
class CompareSettings(Settings):
    """The settings of `python -m unirl_env.bench compare`, behind the two folders."""

    output: str | None = setting(None)
    """The file of the page; null writes `compare_<name of the second folder>.html` into the first folder."""


@dataclass(frozen=True)
class Side:
    """One of two benches, without what was not run for it.

    Attributes:
        folder: Where it lies.
        known: What stands in its `bench.json`.
        rows: Of its runs; results that ship are left out where there are others.
    """

    folder: Path
    known: Mapping[str, Any]
    rows: Sequence[Row]

    @property
    def suite(self) -> str:
        """The name of its suite."""
        return str(self.known["suite"]["name"])


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

    @property
    def sure(self) -> bool:
        """Whether it holds against the correction."""
        return self.corrected < 1 - LEVEL


@dataclass(frozen=True)
class Comparison:
    """What two benches have in common.

    Attributes:
        changes: Of agents and tasks that both have.
        tau: Whether they rank agents alike; None with fewer than two.
        agents: Those that both have.
        ranked: Of these, the ones that tau ranks: all whose tasks are those of the others, too.
        tasks: By which they are ranked, of the first and of the second.
    """

    changes: Sequence[Change]
    tau: Interval | None
    agents: Sequence[str]
    ranked: Sequence[str] = ()
    tasks: tuple[Sequence[str], Sequence[str]] = ((), ())


def compare(
    first: Path, second: Path, console: Console, settings: CompareSettings | None = None
) -> Comparison:
    """Hold two benches against each other, print what came of it, and write it as a page.

    Args:
        first: A bench's folder.
        second: Another one's.
        console: Where a person reads.
        settings: Where the page goes.

    Raises:
        ConfigError: If a folder is no bench's, or they have no agent in common.
    """
    from unirl_env.bench.page.comparison import write_comparison

    sides = read_side(first), read_side(second)
    known = [scores(side.rows) for side in sides]
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
            f"Kendall's tau of the rankings of {len(found.ranked)} agents ({', '.join(found.ranked)}) on "
            f"{sides[0].suite} in {first} and on {sides[1].suite} in {second}: {_shown(tau)}. 1 is the same "
            "ranking, -1 the reverse; it speaks of these agents on these tasks.",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    for folder, other, alone in zip((first, second), (second, first), tasks_alone(*known), strict=True):
        if alone:
            console.print(
                f"{folder} alone has runs of {', '.join(alone)}: {other} has none there, and no difference "
                "is told.",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
    output = settings.output if settings else None
    path = Path(output).expanduser() if output else first / f"compare_{second.resolve().name}.html"
    page = write_comparison(path, sides, found)
    console.print(f"Page  {page}", highlight=False, markup=False, soft_wrap=True)
    return found


def read_side(folder: Path) -> Side:
    """A bench that is to be compared.

    Raises:
        ConfigError: If the folder is no bench's.
    """
    known, rows = read_bench(folder)
    return Side(folder, known, [row for row in rows if not row.get("baseline")] or rows)


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
    ranked = _whole(agents, first, second)
    tasks = _shared(ranked, first), _shared(ranked, second)
    if len(ranked) < 2 or not all(tasks):
        return Comparison(changes, None, agents)
    sides = [
        {a: {task: list(side[a][task].values()) for task in shared} for a in ranked}
        for side, shared in zip((first, second), tasks, strict=True)
    ]
    return Comparison(changes, kendall(sides[0], sides[1], LEVEL), agents, ranked, tasks)


def _whole(agents: Sequence[str], first: Scores, second: Scores) -> Sequence[str]:
    """The agents that have every task which any of them has; all of them where that leaves fewer than two.

    A mean over other tasks is another number, and one agent that is not defined somewhere must not take the
    task from all others.
    """
    every = [{task for agent in agents for task in side[agent]} for side in (first, second)]
    whole = [a for a in agents if set(first[a]) == every[0] and set(second[a]) == every[1]]
    return whole if len(whole) > 1 else agents


def _shared(agents: Sequence[str], side: Scores) -> Sequence[str]:
    return sorted(set.intersection(*(set(side[agent]) for agent in agents))) if agents else ()


def _table(changes: Sequence[Change], first: Path, second: Path) -> Table:
    table = Table(title=f"{escape(str(second))} less {escape(str(first))}, normalised", title_justify="left")
    for name in ("agent", "task"):
        table.add_column(name, overflow="fold")
    for name in ("difference, 95 %", "p", "p corrected", "seeds"):
        table.add_column(name, justify="right")
    for change in changes:
        text = _shown(change.pair.difference, signed=True)
        table.add_row(
            escape(change.agent),
            escape(change.task or "mean over tasks"),
            f"[bold]{escape(text)}[/]" if change.sure else escape(text),
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
