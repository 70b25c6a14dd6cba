"""How many seeds, prompts and hours it takes to see a wanted effect: from the spread of a pilot.

A pilot is any bench of at least two agents and two seeds: one of one's own, or the results that ship.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from unirl_env.bench.baselines import stored, without_results
from unirl_env.bench.contestants import contestants
from unirl_env.bench.rows import known_mean
from unirl_env.bench.statistics import Plan, seeds_needed
from unirl_env.bench.stored import Row, Scores, on_common_seeds, read_bench, scores
from unirl_env.bench.suite import load
from unirl_env.errors import ConfigError, UnirlError
from unirl_env.settings.fields import Settings, setting


@dataclass
class PlanSettings(Settings):
    """What `bench plan` is told."""

    suite: str = setting("quick")
    """The suite whose shipped results are the pilot."""
    pilot: str | None = setting(None)
    """The folder of a bench of one's own, which is the pilot in place of them."""
    effect: float = setting(0.05, above=0)
    """The difference of normalised scores to be seen: 1 is the way from untrained to the reference."""
    power: float = setting(0.8, above=0.05, below=1)
    """How often it is to be seen, if it is there."""
    agents: list[Any] | None = setting(None)
    """Agents of the pilot; null takes all."""
    workers: int = setting(2, least=1)
    """Runs at once, for the hours."""


@dataclass(frozen=True)
class Need:
    """What a task, or all together, needs.

    Attributes:
        name: The task's.
        seeds: Of the pair of agents with the largest spread.
        prompts: How many prompts it takes for the effect to stand out of the choice of prompts; None where
            the score is not one of prompts.
        hours: Of all agents on these seeds.
    """

    name: str
    seeds: Plan
    prompts: int | None
    hours: float


def plan(settings: PlanSettings, console: Console) -> list[Need]:
    """Say what it takes, task by task and for the mean over tasks.

    Raises:
        ConfigError: If there is no pilot of two agents and two seeds.
    """
    bench, rows = _pilot(settings)
    if settings.agents is not None:
        labels = {one.label for one in contestants(settings.agents)}
        rows = [row for row in rows if row["agent"] in labels]
    known = scores(rows)
    pairs = list(combinations(sorted(known), 2))
    needs = []
    for task in bench["suite"]["tasks"]:
        chosen = {agent: {task: own[task]} for agent, own in known.items() if task in own}
        needs.append(_need(task, chosen, rows, settings))
    count = max((len(own) for own in known.values()), default=0)
    whole = {agent: own for agent, own in known.items() if len(own) == count}
    needs.append(_need("mean over tasks", whole, rows, settings) if count > 1 else None)
    found = [need for need in needs if need is not None]
    if not pairs or not found:
        raise ConfigError(
            f"The pilot must have two agents with two seeds in common, got agents {sorted(known)}; try "
            "`python -m unirl_env.bench agents=[grpo,drpo] seeds=3` first, and `pilot=<its folder>`."
        )
    console.print(_table(found, settings, len(known)))
    if absent := [] if settings.pilot is not None else without_results(load(settings.suite)):
        console.print(
            f"No results ship for {', '.join(absent)} as the suite has it: nothing is said of it, and the "
            f"mean over tasks is without it; try `python -m unirl_env.bench suite={settings.suite} "
            f"tasks=[{','.join(absent)}] seeds=3`, and `pilot=<its folder>`.",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    console.print(
        "Seeds: by the spread that the pilot had, and in brackets by an upper bound of it, which the truth "
        "exceeds in one of five pilots. Of all pairs of agents, the one with the largest spread counts. "
        "Prompts: so many that the difference would stand out of the choice of prompts, too.",
        highlight=False,
        soft_wrap=True,
    )
    return found


def _pilot(settings: PlanSettings) -> tuple[Mapping[str, Any], Sequence[Row]]:
    if settings.pilot is not None:
        return read_bench(Path(settings.pilot).expanduser())
    found = stored(settings.suite)
    if found is None:
        raise ConfigError(
            f"`pilot` must be the folder of a bench where no results of {settings.suite} ship, got null; try "
            f"`python -m unirl_env.bench suite={settings.suite} seeds=3`, and its folder."
        )
    return found


def _need(name: str, known: Scores, rows: Sequence[Row], settings: PlanSettings) -> Need | None:
    plans = []
    for first, second in combinations(sorted(known), 2):
        mine, other = on_common_seeds(known[first], known[second])
        if not mine or len(next(iter(mine.values()))) < 2:
            continue
        apart = np.mean([np.subtract(mine[task], other[task]) for task in mine], axis=0)
        plans.append(seeds_needed(apart, settings.effect, settings.power))
    if not plans:
        return None
    widest = max(plans, key=lambda each: each.deviation)
    tasks = {task for own in known.values() for task in own}
    own_rows = [row for row in rows if row["task"] in tasks]
    seconds = [row["metrics"].get("wall_seconds") or row["metrics"].get("seconds") or 0.0 for row in own_rows]
    runs = widest.seeds * len({(row["task"], row["agent"]) for row in own_rows})
    hours = sum(seconds) / max(1, len(seconds)) * runs / settings.workers / 3600
    return Need(name, widest, _prompts(own_rows, settings) if len(tasks) == 1 else None, hours)


def _prompts(rows: Sequence[Row], settings: PlanSettings) -> int | None:
    """Prompts for which the effect stands out of their choice, by differences of two agents."""
    by_agent: dict[str, list[Sequence[float | None]]] = {}
    size = None
    for row in rows:
        values = row["prompts"].get("heldout/reward")
        metrics = row["metrics"]
        if values and {"base", "reference"} <= metrics.keys():
            by_agent.setdefault(row["agent"], []).append(values)
            size = abs(metrics["reference"] - metrics["base"]) or None
    means = {
        agent: [known_mean(column) for column in zip(*runs, strict=True)]
        for agent, runs in by_agent.items()
        if len({len(run) for run in runs}) == 1
    }
    counts = []
    for first, second in combinations(sorted(means), 2):
        pairs = zip(means[first], means[second], strict=False)
        apart = [(a - b) / (size or 1.0) for a, b in pairs if a is not None and b is not None]
        try:
            counts.append(seeds_needed(apart, settings.effect, settings.power).seeds)
        except UnirlError:
            continue
    return max(counts) if counts else None


def _table(needs: Sequence[Need], settings: PlanSettings, agents: int) -> Table:
    table = Table(
        title=f"To see a difference of {settings.effect:g} in {settings.power:.0%} of benches",
        title_justify="left",
    )
    table.add_column("task", overflow="fold")
    for name in ("spread of differences", "the pilot could see", "seeds", "prompts"):
        table.add_column(name, justify="right")
    table.add_column(f"time, {agents} agents", justify="right")
    for need in needs:
        seeds = need.seeds
        hours = f"{need.hours:.1f} h" if need.hours >= 0.1 else f"{math.ceil(need.hours * 60)} min"
        table.add_row(
            need.name,
            f"{seeds.deviation:.3g}",
            f"{seeds.detectable:.3g}",
            f"{seeds.seeds} ({seeds.seeds_if_noisier})",
            "-" if need.prompts is None else str(need.prompts),
            hours,
        )
    return table
