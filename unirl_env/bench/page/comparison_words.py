"""What two benches say together, in plain sentences, and what must be known before it is believed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from unirl_env.bench.page import numbers
from unirl_env.bench.page.both import Both, common_tasks, kinds
from unirl_env.bench.page.cells import spelled
from unirl_env.bench.page.numbers import PERCENT
from unirl_env.bench.page.words import coverage_of, joined, warnings
from unirl_env.bench.stored import scores, tasks_alone
from unirl_env.run.report.charts import titles

if TYPE_CHECKING:
    from unirl_env.bench.compare import Side


def facts(both: Both) -> list[str]:
    """What is compared, in a few words each."""
    tasks = len({change.task for change in both.found.changes if change.task})
    seeds = [len(bench.seeds) for bench in both.benches]
    count = len(both.found.agents)
    return [
        *(f"{n}: suite {b.name}" for n, b in zip(both.names, both.benches, strict=True) if n != b.name),
        f"{count} agent{'' if count == 1 else 's'} in both",
        f"{tasks} task{'' if tasks == 1 else 's'} in both",
        f"{seeds[0]} seeds" if seeds[0] == seeds[1] else f"{seeds[0]} and {seeds[1]} seeds",
    ]


def sentences(both: Both) -> list[str]:
    """What is known, the whole before its parts."""
    return [*_of_tau(both), *_of_orders(both), *_of_changes(both)]


def _of_tau(both: Both) -> list[str]:
    tau = both.found.tau
    if tau is None:
        return ["Two agents at least must have tasks in common to be ranked: no ranking is compared."]
    if math.isnan(tau.estimate):
        return ["All agents of one of the benches are equal: no ranking is compared."]
    known = numbers.estimate(tau, _seeds(both))
    what = {
        1: "They rank these agents alike more than not.",
        -1: "They rank these agents in reverse more than not.",
        0: "Whether one ranking tells the other one is not known.",
    }[known.side]
    names = joined([both.title(a) for a in both.found.ranked])
    return [
        f"Kendall's tau of the two rankings is {spelled(known)}: 1 is the same ranking, -1 the reverse. "
        f"{what}",
        f"It speaks of {names} on these tasks, and of no others. {coverage_of([known])}",
    ]


def _of_orders(both: Both) -> list[str]:
    """Which orders are known on both sides."""
    if both.ranked is None:
        return []
    first, second = both.ranked
    alike: dict[str, list[str]] = {}
    turned = []
    for a in first.agents:
        for b in first.agents:
            if a != b and first.side(a, b) > 0:
                if second.side(a, b) > 0:
                    alike.setdefault(a, []).append(both.title(b))
                elif second.side(a, b) < 0:
                    turned.append(f"{both.title(a)} is above {both.title(b)} in {both.names[0]} and below it")
    parts = [f"{both.title(a)} above {joined(names)}" for a, names in alike.items()]
    said = [f"Known in both at {PERCENT} after Holm's correction: {'; '.join(parts)}."] if parts else []
    said += [f"{'; '.join(turned)} in {both.names[1]}."] if turned else []
    return said or ["There are no two agents whose order is known in both."]


def _of_changes(both: Both) -> list[str]:
    changes = both.found.changes
    if not changes:
        return ["The benches have no task with common seeds: scores are not held against each other."]
    sure = [c for c in changes if c.sure and (not c.task or len(common_tasks(changes)) == 1)]
    parts = [
        f"{both.title(c.agent)} is {'higher' if c.pair.difference.estimate > 0 else 'lower'} in "
        f"{both.names[1]} ({spelled(numbers.estimate(c.pair.difference, c.pair.n), sign=True)})"
        for c in sure
    ]
    over = "On the one common task" if len(common_tasks(changes)) == 1 else "Over the common tasks together"
    if parts:
        return [f"{over}, {'; '.join(parts)}."]
    return [f"{over}, no agent's scores in the two can be told apart at {PERCENT} after Holm's correction."]


def warnings_of(both: Both, sides: tuple[Side, Side]) -> list[tuple[str, str]]:
    """What a reader must know, that of both together first."""
    found = []
    configured = [kinds(bench) for bench in both.benches]
    for one, other in ((0, 1), (1, 0)):
        who = [
            a for a in both.found.agents if configured[one][a] == "tuned" and configured[other][a] != "tuned"
        ]
        if who:
            words = (
                f"{joined([both.title(a) for a in who])} had settings searched for in {both.names[one]} and "
                f"not in {both.names[other]}. What differs between the two may be the search's doing."
            )
            found.append(("A tuned agent is compared with an untuned one", words))
    left = [both.title(a) for a in both.found.agents if a not in both.found.ranked]
    if left and both.found.ranked:
        words = f"{joined(left)} cannot be ranked: not on all tasks that the others have."
        found.append(("Not every agent runs everywhere", words))
    alone = tasks_alone(scores(sides[0].rows), scores(sides[1].rows))
    for i, name in enumerate(both.names):
        if alone[i]:
            shown = joined([both.benches[i].tasks[task].title for task in alone[i]])
            words = f"{shown}: {both.names[1 - i]} has no runs there, so that no difference is told of it."
            if set(alone[i]) & set(both.found.tasks[i]):
                words += f" The ranking in {name} counts it, the other one cannot."
            found.append((f"Tasks of {name} alone", words))
        only = sorted({str(row["agent"]) for row in sides[i].rows} - set(both.found.agents))
        if only:
            found.append((f"Only in {name}", f"{joined(list(titles(only).values()))}."))
        if both.ranked is not None:
            found += [(f"{name}: {head}", words) for head, words in warnings(both.ranked[i])]
    return found


def _seeds(both: Both) -> int:
    """Of the cell that has the fewest."""
    if both.ranked is None:
        return 0
    counts = [len(f.bench.cell(t, a)) for f in both.ranked for t in f.bench.tasks for a in f.bench.agents]
    return min(counts, default=0)
