"""What is known of a bench: every number that a table, a figure or a sentence shows, computed once.

Agents are put together over the tasks on which all of them have runs, those without any run left aside, and
those that are not defined on some task, too: a mean over other tasks is another number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from unirl_env.bench.page import numbers
from unirl_env.bench.page.numbers import Estimate, Pair
from unirl_env.bench.page.reading import Bench


@dataclass(frozen=True)
class Findings:
    """The numbers of a bench.

    Attributes:
        bench: What they come from.
        agents: Labels of the agents that have runs, the best first by the interquartile mean.
        shared: Tasks that all of them have runs on, but for those that are not defined on some task.
        ranking: By statistic and agent, of the normalised scores of the shared tasks.
        cells: By task and agent, the mean score over seeds.
        pairs: By two agents in the order of `agents`, over the shared tasks; corrected among themselves.
        within: By task and two agents, of that task's scores; corrected among all tasks and pairs.
        improvement: By two agents in any order.
        best: By task, the agent that is above every other one that has runs there, where there is one.
    """

    bench: Bench
    agents: Sequence[str]
    shared: Sequence[str]
    ranking: Mapping[str, Mapping[str, Estimate]]
    cells: Mapping[tuple[str, str], Estimate]
    pairs: Mapping[tuple[str, str], Pair]
    within: Mapping[tuple[str, str, str], Pair]
    improvement: Mapping[tuple[str, str], Estimate]
    best: Mapping[str, str]

    def side(self, first: str, second: str, task: str | None = None) -> int:
        """1 where `first` is known to be above `second`, -1 below, 0 where nothing is known."""
        for a, b, sign in ((first, second, 1), (second, first, -1)):
            pair = self.pairs.get((a, b)) if task is None else self.within.get((task, a, b))
            if pair is not None:
                return sign * pair.side
        return 0


def find(bench: Bench) -> Findings:
    """Everything that can be said of a bench."""
    present = [a for a in bench.agents if any(row.agent == a for row in bench.rows)]
    whole = [a for a in present if a in bench.everywhere] or present
    shared = [t for t in bench.tasks if present and all(bench.normalised(t, a) for a in whole)]
    scores = {a: {t: _values(bench.normalised(t, a)) for t in shared if a in whole} for a in present}
    ranking = {
        name: {a: found for a in present if (found := numbers.pooled(scores[a], name)) is not None}
        for name in numbers.STATISTICS
    }
    first = ranking["iqm"]
    agents = sorted(present, key=lambda a: -first[a].value if a in first else float("inf"))
    cells = {
        (t, a): found
        for t in bench.tasks
        for a in bench.agents
        if (found := numbers.mean(_values(bench.scores(t, a)))) is not None
    }
    within = _within(bench, agents)
    improvement = {
        (a, b): found
        for a in agents
        for b in agents
        if a != b and (found := numbers.improvement(scores[a], scores[b])) is not None
    }
    all_but_best = Findings(
        bench,
        agents,
        shared,
        ranking,
        cells,
        _over_tasks(bench, [a for a in agents if a in whole], shared),
        within,
        improvement,
        {},
    )
    return replace(all_but_best, best=_best(all_but_best))


def _values(by_seed: Mapping[int, float]) -> list[float]:
    return [by_seed[seed] for seed in sorted(by_seed)]


def _over_tasks(bench: Bench, agents: Sequence[str], shared: Sequence[str]) -> dict[tuple[str, str], Pair]:
    asked = {}
    for a, b in combinations(agents, 2):
        x, y = ({t: bench.normalised(t, agent) for t in shared} for agent in (a, b))
        # A difference over tasks belongs to a seed: those that both agents have on every task.
        common = set.intersection(*({*x[t]} & {*y[t]} for t in shared)) if shared else set()
        seeds = sorted(common)
        if seeds:
            first = {t: [x[t][s] for s in seeds] for t in shared}
            asked[a, b] = first, {t: [y[t][s] for s in seeds] for t in shared}
    return numbers.compared(asked)


def _within(bench: Bench, agents: Sequence[str]) -> dict[tuple[str, str, str], Pair]:
    asked = {}
    for task in bench.tasks:
        scores = {a: bench.scores(task, a) for a in agents}
        for a, b in combinations(agents, 2):
            seeds = sorted({*scores[a]} & {*scores[b]})
            if seeds:
                first = {task: [scores[a][s] for s in seeds]}
                asked[task, a, b] = first, {task: [scores[b][s] for s in seeds]}
    return numbers.compared(asked)


def _best(found: Findings) -> dict[str, str]:
    best = {}
    for task in found.bench.tasks:
        here = [a for a in found.agents if found.bench.cell(task, a)]
        for a in here:
            if len(here) > 1 and all(found.side(a, b, task) > 0 for b in here if b != a):
                best[task] = a
    return best
