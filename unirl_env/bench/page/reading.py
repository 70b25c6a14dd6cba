"""A bench from its files, whatever is missing or odd in them.

Nothing here raises for what a file says: what cannot be read is left out and named in `Bench.notes`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unirl_env.errors.masks import masked, remember_command
from unirl_env.run.report.charts import titles

FAILED = ("diverged", "crashed")


@dataclass(frozen=True)
class Row:
    """One cell of a bench: a line of `results.jsonl`.

    Attributes:
        task: Its task.
        agent: The label of its agent.
        seed: Its seed.
        configuration: `default` or `tuned`.
        status: `done`, `diverged` or `crashed`.
        error: What raised.
        score: The task's main figure, the higher the better; None where the run failed.
        normalised: The score between the untrained policy (0) and the task's reference (1).
        metrics: Everything else that was measured once.
        curve: Columns of one length.
        folder: The run's folder, relative to that of the bench.
        evaluation: How the score was measured.
        baseline: Whether it was not run for this bench, and comes from the results that ship.
    """

    task: str
    agent: str
    seed: int
    configuration: str = "default"
    status: str = "done"
    error: str = ""
    score: float | None = None
    normalised: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    curve: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    folder: str = ""
    evaluation: Mapping[str, float] = field(default_factory=dict)
    baseline: bool = False

    @property
    def done(self) -> bool:
        """Whether the run came to its end with a score."""
        return self.status == "done" and self.score is not None


@dataclass(frozen=True)
class Task:
    """An environment in a regime.

    Attributes:
        name: As in the results.
        title: For people.
        why: Why the regime exists.
        score: What the main figure is called.
        unit: Its unit.
        threshold: Normalised score that counts as reached.
        base: Score of the untrained policy; None where no run says so.
        reference: Score that counts as 1.
    """

    name: str
    title: str
    why: str = ""
    score: str = "score"
    unit: str = ""
    threshold: float | None = None
    base: float | None = None
    reference: float | None = None


@dataclass(frozen=True)
class Agent:
    """An algorithm as it took part.

    Attributes:
        label: As in the results; no two agents share one.
        title: For people.
        tuned: Whether its settings were searched for.
        settings: What it was given.
    """

    label: str
    title: str
    tuned: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    """A bench as its files tell it.

    Attributes:
        name: Of the suite.
        title: For people.
        tasks: By name, in the suite's order.
        agents: By label, in the bench's order.
        seeds: What was asked for, or what there is.
        tune: How agents were tuned; None if they were not.
        provenance: Versions, hashes, hardware, command.
        rows: One for each cell that has ended.
        notes: What was odd in the files, a sentence each.
        refused: By task and label, why an agent is not defined there.
        without_results: Tasks for which no results ship, where they do for others of the suite.
    """

    name: str
    title: str
    tasks: Mapping[str, Task]
    agents: Mapping[str, Agent]
    seeds: Sequence[int]
    tune: Any
    provenance: Mapping[str, Any]
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    refused: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    without_results: Sequence[str] = ()

    @property
    def shipped(self) -> list[str]:
        """Agents that were not run for this bench: all that there is of them ships."""
        run = {row.agent for row in self.rows if not row.baseline}
        known = {row.agent for row in self.rows} - run
        return [label for label in self.agents if label in known]

    @property
    def everywhere(self) -> list[str]:
        """Agents that are refused on no task; all of them where each is on some."""
        partly = {label for labels in self.refused.values() for label in labels}
        return [label for label in self.agents if label not in partly] or list(self.agents)

    def cell(self, task: str, agent: str) -> list[Row]:
        """The rows of an agent on a task, by seed."""
        mine = [row for row in self.rows if row.task == task and row.agent == agent]
        return sorted(mine, key=lambda row: row.seed)

    def scores(self, task: str, agent: str) -> dict[int, float]:
        """Seed to score; a run that failed counts as the untrained policy, where its score is known."""
        found, base = {}, self.tasks[task].base
        for row in self.cell(task, agent):
            value = row.score if row.done else base if row.status != "done" else None
            if value is not None:
                found[row.seed] = value
        return found

    def normalised(self, task: str, agent: str) -> dict[int, float]:
        """Seed to normalised score; a run that failed counts 0."""
        found = {}
        for row in self.cell(task, agent):
            value = row.normalised if row.done else 0.0 if row.status != "done" else None
            if value is not None:
                found[row.seed] = value
        return found


def read_bench(folder: Path) -> Bench:
    """The bench in `folder`, from `bench.json` and `results.jsonl`."""
    notes: list[str] = []
    try:
        known = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        known = {}
        notes.append(
            f"bench.json cannot be read ({type(error).__name__}): tasks and agents are those of the results."
        )
    rows, broken = [], 0
    path = folder / "results.jsonl"
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            broken += bool(line.strip())
    if broken:
        notes.append(f"Left out of results.jsonl: {_lines(broken)} that cannot be read.")
    return as_bench(rows, known, notes, folder.resolve().name)


def as_bench(rows: Iterable[Any], known: Any, notes: Sequence[str] = (), name: str = "bench") -> Bench:
    """A bench from what its files hold.

    Args:
        rows: The lines of `results.jsonl`.
        known: What is in `bench.json`.
        notes: What was odd until now.
        name: What it is called if nothing says so.
    """
    notes, known = list(notes), _public(_mapping(known))
    suite = _mapping(known.get("suite"))
    found, odd, twice = {}, 0, 0
    for raw in rows:
        row = _row(raw)
        if row is None:
            odd += 1
            continue
        key = (row.task, row.agent, row.seed)
        twice += key in found
        found[key] = row
    if odd:
        notes.append(f"Left out of results.jsonl: {_lines(odd)} without a task, an agent or a seed.")
    if twice:
        notes.append(f"In results.jsonl, a later run takes the place of an earlier one in {_lines(twice)}.")
    kept = sorted(found.values(), key=lambda row: (row.task, row.agent, row.seed))
    agents = _agents(known.get("agents"), kept)
    tasks = _tasks(_mapping(suite.get("tasks")), kept)
    seeds = [s for s in _sequence(known.get("seeds")) if _is_whole(s)]
    return Bench(
        name=_text(suite.get("name"), name),
        title=_text(suite.get("title")) or _text(suite.get("name"), name),
        tasks=tasks,
        agents=agents,
        seeds=list(dict.fromkeys(seeds)) or sorted({row.seed for row in kept}),
        tune=known.get("tune") or None,
        provenance=_mapping(known.get("provenance")),
        rows=kept,
        notes=notes,
        refused=_refused(known.get("refused"), tasks, agents),
        without_results=[name for name in _sequence(known.get("without_results")) if name in tasks],
    )


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _public(known: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `bench.json` says without secrets, which no text of the page repeats from now on."""
    command = _mapping(known.get("provenance")).get("command")
    words = [command] if isinstance(command, str) else _sequence(command)
    remember_command(word for word in words if isinstance(word, str))
    return _mapping(masked(known))


def _row(raw: Any) -> Row | None:
    raw = _mapping(raw)
    task, agent, seed = (raw.get(name) for name in ("task", "agent", "seed"))
    if not isinstance(task, str) or not isinstance(agent, str) or not _is_whole(seed):
        return None
    status = _text(raw.get("status"), "done")
    score, normalised = number(raw.get("score")), number(raw.get("normalised"))
    if status == "done" and score is None:
        status = "diverged"  # It ended without a number that could be averaged.
    metrics, evaluation = _numbers(raw.get("metrics")), _numbers(raw.get("evaluation"))
    curve = {
        str(k): [number(v) for v in column]
        for k, column in _mapping(raw.get("curve")).items()
        if isinstance(column, list)
    }
    lengths = {len(column) for column in curve.values()}
    return Row(
        task=task,
        agent=agent,
        seed=int(seed or 0),
        configuration=_text(raw.get("configuration"), "default"),
        status=status,
        error=_text(raw.get("error")),
        score=score if status == "done" else None,
        normalised=normalised if status == "done" else 0.0,
        metrics=metrics,
        curve=curve if len(lengths) == 1 else {},
        folder=_text(raw.get("folder")),
        evaluation=evaluation,
        baseline=raw.get("baseline") is True,
    )


def _numbers(value: Any) -> dict[str, float]:
    known = {str(name): number(part) for name, part in _mapping(value).items()}
    return {name: part for name, part in known.items() if part is not None}


def _agents(known: Any, rows: Sequence[Row]) -> dict[str, Agent]:
    named = {
        _text(entry.get("label"), _text(entry.get("name"))): entry
        for entry in map(_mapping, _sequence(known))
    }
    named.pop("", None)
    for row in rows:
        named.setdefault(row.agent, {"tuned": row.configuration == "tuned"})
    shown = titles(named)
    return {
        label: Agent(
            label,
            shown[label],
            entry.get("tuned") is True,
            _mapping(entry.get("settings")),
        )
        for label, entry in named.items()
    }


def _tasks(known: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Task]:
    found = {}
    for name in dict.fromkeys([*map(str, known), *(row.task for row in rows)]):
        said = _mapping(known.get(name))
        mine = [row for row in rows if row.task == name]
        found[name] = Task(
            name,
            _text(said.get("title"), name),
            _text(said.get("why")),
            _text(said.get("score"), "score"),
            _text(said.get("unit")),
            number(said.get("threshold")),
            _middle(row.metrics.get("base") for row in mine),
            _middle(row.metrics.get("reference") for row in mine),
        )
    return found


def _middle(values: Iterable[float | None]) -> float | None:
    known = sorted(value for value in values if value is not None)
    return known[len(known) // 2] if known else None


def _refused(known: Any, tasks: Mapping[str, Task], agents: Mapping[str, Agent]) -> dict[str, dict[str, str]]:
    found = {}
    for task, labels in _mapping(known).items():
        mine = {label: _text(why) for label, why in _mapping(labels).items() if label in agents}
        if task in tasks and mine:
            found[task] = mine
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _text(value: Any, otherwise: str = "") -> str:
    return value if isinstance(value, str) and value else otherwise


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _lines(count: int) -> str:
    return f"{count} line{'' if count == 1 else 's'}"
