"""Two benches as the page of both takes them: the agents that both have, and how they rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from unirl_env.bench.page import figures
from unirl_env.bench.page.findings import Findings, find
from unirl_env.bench.page.reading import Bench, as_bench
from unirl_env.run.report.charts import titles

if TYPE_CHECKING:
    from unirl_env.bench.compare import Change, Comparison, Side


@dataclasses.dataclass(frozen=True)
class Both:
    """What the page is made of.

    Attributes:
        names: What the benches are called, two different names.
        benches: With the agents that both have, and no others.
        ranked: The findings of agents and tasks that are ranked; None where nothing is.
        found: What the benches have in common.
        palette: The colour of each agent, by its style.
    """

    names: tuple[str, str]
    benches: tuple[Bench, Bench]
    ranked: tuple[Findings, Findings] | None
    found: Comparison
    palette: Mapping[str, str]

    def title(self, agent: str) -> str:
        """What an agent is called."""
        return self.benches[0].agents[agent].title

    def style(self, agent: str) -> str:
        """The class of an agent on the page."""
        return f"agent{list(self.benches[0].agents).index(agent)}"

    def task(self, name: str) -> str:
        """What a task of both is called."""
        return self.benches[0].tasks[name].title if name else "mean over tasks"


def read_both(sides: tuple[Side, Side], found: Comparison) -> Both:
    """What the page of two benches is made of.

    Args:
        sides: The benches.
        found: What they have in common.
    """
    benches, ranked = [], []
    shown = titles(found.agents)
    for i, side in enumerate(sides):
        bench = as_bench(side.rows, side.known, name=side.folder.resolve().name)
        # Agents that share a title in one of the benches alone are still one agent here.
        agents = {a: dataclasses.replace(bench.agents[a], title=shown[a]) for a in found.agents}
        whole = dataclasses.replace(
            bench,
            agents=agents,
            rows=[row for row in bench.rows if row.agent in agents],
            refused={},
            without_results=(),
        )
        benches.append(whole)
        if found.tau is not None:
            ranked.append(find(_part(whole, found.ranked, found.tasks[i])))
    names = _names(sides)
    kept = (ranked[0], ranked[1]) if ranked else None
    palette = figures.palette_of(found.agents)
    return Both(names, (benches[0], benches[1]), kept, found, palette)


def _part(bench: Bench, agents: Sequence[str], tasks: Sequence[str]) -> Bench:
    return dataclasses.replace(
        bench,
        agents={a: bench.agents[a] for a in agents},
        tasks={t: bench.tasks[t] for t in tasks},
        rows=[row for row in bench.rows if row.agent in agents and row.task in tasks],
    )


def _names(sides: tuple[Side, Side]) -> tuple[str, str]:
    """The folders' own names, with as many of those above as tell them apart."""
    parts = [side.folder.resolve().parts for side in sides]
    longest = max(map(len, parts))
    for count in range(1, longest):
        first, second = ("/".join(part[-count:]) for part in parts)
        if first != second:
            return first, second
    return "/".join(parts[0][-1:]), f"{'/'.join(parts[1][-1:])} again"


def ranks(found: Findings) -> dict[str, tuple[int, int, int]]:
    """The rank of each agent by its mean, the best and the worst that the differences leave to it.

    An agent that is known to be below k others by Holm's correction over all pairs ranks k + 1 at best; all
    of these bounds hold together as often as the correction promises.

    Reference:
        Mogstad et al. 2024 (Inference for Ranks), doi:10.1093/restud/rdad006, section 3.
    """
    means = found.ranking["mean"]
    placed = {}
    for agent in means:
        others = [other for other in means if other != agent]
        place = 1 + sum(means[other].value > means[agent].value for other in others)
        best = 1 + sum(found.side(other, agent) > 0 for other in others)
        worst = len(means) - sum(found.side(agent, other) > 0 for other in others)
        placed[agent] = place, best, worst
    return placed


def kinds(bench: Bench) -> dict[str, str]:
    """Whether each agent was tuned: `tuned`, `default`, or both."""
    kinds: dict[str, set[str]] = {}
    for row in bench.rows:
        kinds.setdefault(row.agent, set()).add(row.configuration)
    return {a: " and ".join(sorted(kinds.get(a, {"default"}))) for a in bench.agents}


def common_tasks(changes: Sequence[Change]) -> list[str]:
    """The tasks on which both have scores."""
    return list(dict.fromkeys(change.task for change in changes if change.task))
