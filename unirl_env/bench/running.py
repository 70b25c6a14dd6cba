"""A bench from its settings to its page: check, choose configurations, play, collect, report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from unirl_env.bench.baselines import baseline_rows, stored_refusals, without_results
from unirl_env.bench.bench_settings import TUNING_SEEDS, BenchSettings
from unirl_env.bench.cells import Cell, cells
from unirl_env.bench.configurations import draw
from unirl_env.bench.contestants import Contestant, contestants
from unirl_env.bench.rows import DONE, head
from unirl_env.bench.schedule import Schedule
from unirl_env.bench.suite import Suite, load
from unirl_env.errors import ConfigError, UnirlError
from unirl_env.run.record import provenance
from unirl_env.run.record.files import locked, replace_text
from unirl_env.run.record.logbook import as_json
from unirl_env.settings import RunConfig

FORMAT = 1
Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Everything that a bench is made of, before a run begins.

    Attributes:
        settings: What was asked for.
        suite: The tasks.
        entries: The agents.
        place: The bench's folder.
        refused: By task and label, why an agent is not defined there.
        needs: The settings of a run of each kind.
    """

    settings: BenchSettings
    suite: Suite
    entries: Sequence[Contestant]
    place: Path
    refused: Mapping[str, Mapping[str, str]]
    needs: Sequence[RunConfig]


def run_bench(settings: BenchSettings, console: Console, command: Sequence[str] = ()) -> Path:
    """Do a bench, or go on with it; the path of its page.

    Raises:
        UnirlError: If the settings, the machine or the folder do not allow it.
        KeyboardInterrupt: After Ctrl-C; what is finished is kept.
    """
    bench = prepared(settings)
    bench.place.mkdir(parents=True, exist_ok=True)
    lock = locked(bench.place, "bench")
    try:
        _tell_refused(bench, console)
        _tell_without_results(bench, console)
        schedule = Schedule(settings, console, bench.needs)
        entries = tuned(bench, schedule) if settings.tune else list(bench.entries)
        every = [
            cell
            for cell in cells(bench.place, bench.suite, entries, settings.chosen_seeds, settings.settings)
            if cell.contestant.label not in bench.refused.get(cell.task.name, {})
        ]
        _require_same(every)
        if settings.retry_failed:
            for cell in every:
                if (row := cell.row()) is not None and row["status"] != DONE:
                    cell.row_path.unlink()
        _write_plan(bench, entries, command)
        rows = schedule.play(every, bench.suite.name)
        return collected(bench, rows, console)
    finally:
        lock.close()


def prepared(settings: BenchSettings) -> Bench:
    """Everything looked up and held against each other; nothing is loaded or started.

    Raises:
        ConfigError: If something is unknown, or an agent fits no task.
    """
    suite = load(settings.suite).only(settings.tasks)
    entries = contestants(settings.agents)
    place = settings.place(suite.name)
    refused, needs = _checked(suite, entries, place, settings)
    return Bench(settings, suite, entries, place, refused, needs)


def _checked(
    suite: Suite, entries: Sequence[Contestant], place: Path, settings: BenchSettings
) -> tuple[dict[str, dict[str, str]], list[RunConfig]]:
    """Compose and check a run of each agent on each task; what does not fit, and the rest."""
    from unirl_env.run.agent_setup import check_agent

    refused: dict[str, dict[str, str]] = {}
    needs: list[RunConfig] = []
    first: dict[str, UnirlError] = {}
    for cell in cells(place, suite, entries, settings.chosen_seeds[:1], settings.settings):
        try:
            cfg = cell.compose()
            cfg.check()
            check_agent(cfg)
            needs.append(cfg)
        except ConfigError as error:
            refused.setdefault(cell.task.name, {})[cell.contestant.label] = str(error)
            first.setdefault(cell.contestant.label, error)
    for entry in entries:
        if all(entry.label in refused.get(task, {}) for task in suite.tasks):
            raise ConfigError(
                f"`agents` must fit a task of {suite.source or suite.name} at least, got {entry.label}: "
                f"{first[entry.label]}"
            ) from first[entry.label]
    return refused, needs


def tuned(bench: Bench, schedule: Schedule) -> list[Contestant]:
    """The agents, each under the best of the configurations that it was allowed to try.

    The best has the highest mean of normalised scores over tasks and seeds, by what tasks name for it: the
    score on training prompts where held-out ones are reported. Of equal ones, the first.
    """
    settings, seeds = bench.settings, range(TUNING_SEEDS, TUNING_SEEDS + bench.settings.tune_seeds)
    tried: dict[str, list[tuple[Contestant, list[Cell]]]] = {}
    for entry in bench.entries:
        tried[entry.label] = []
        for number, factors in enumerate(draw(entry, settings.tune, 0)):
            one = dataclasses.replace(entry, tuned=True, configuration=tuple(factors.items()))
            part = f"tuning/{number:02d}"
            own = cells(bench.place, bench.suite, [one], list(seeds), settings.settings, part)
            own = [cell for cell in own if entry.label not in bench.refused.get(cell.task.name, {})]
            tried[entry.label].append((one, own))
    every = [cell for each in tried.values() for _, own in each for cell in own]
    _require_same(every)
    rows = dict(zip((cell.name for cell in every), schedule.play(every, "tuning", True), strict=True))
    chosen = []
    for each in tried.values():
        means = [fmean(rows[cell.name]["normalised"] or 0.0 for cell in own) for _, own in each]
        chosen.append(each[means.index(max(means))][0])
    return chosen


def collected(bench: Bench, rows: Sequence[Row], console: Console) -> Path:
    """Write the results and the page, and print the table."""
    shown = [*rows, *(baseline_rows(bench.suite, rows) if bench.settings.baselines else ())]
    write_results(bench.place / "results.jsonl", shown)
    return reported(bench.place, console)


def reported(place: Path, console: Console) -> Path:
    """Write a bench's page from its files, and print its tables; the page."""
    from unirl_env.bench.page import write_bench

    page = write_bench(place, console)
    console.print(f"Page  {page}", highlight=False, markup=False, soft_wrap=True)
    return page


def write_results(path: Path, rows: Sequence[Row]) -> None:
    """One line for each row."""
    replace_text(path, "".join(json.dumps(as_json(row)) + "\n" for row in rows))


def _write_plan(bench: Bench, entries: Sequence[Contestant], command: Sequence[str]) -> None:
    path = bench.place / "bench.json"
    tune = {"configurations": bench.settings.tune, "seeds": bench.settings.tune_seeds}
    plan = {
        "format": FORMAT,
        "suite": bench.suite.described(),
        "agents": [entry.described() for entry in entries],
        "seeds": bench.settings.chosen_seeds,
        "tune": tune if bench.settings.tune else None,
        "settings": list(bench.settings.settings),
        "refused": _refused(bench, entries),
        "without_results": _without_results(bench),
    }
    known = _plan(path)
    sessions = known.get("provenance", {}).get("sessions", []) if known else []
    sources = {"suite": bench.suite.source}
    record = {"sources": sources, "sessions": [*sessions, provenance.session(command, 0)]}
    replace_text(path, json.dumps({**plan, "provenance": record}, indent=1))


def _refused(bench: Bench, entries: Sequence[Contestant]) -> dict[str, dict[str, str]]:
    """Why agents are not defined somewhere, those included whose results ship."""
    found = {task: dict(labels) for task, labels in bench.refused.items()}
    run = {entry.label for entry in entries}
    for task, labels in stored_refusals(bench.suite.name).items():
        if task in bench.suite.tasks:
            others = {label: why for label, why in labels.items() if label not in run}
            found[task] = {**others, **found.get(task, {})}
    return {task: labels for task, labels in found.items() if labels}


def _without_results(bench: Bench) -> list[str]:
    """Tasks on which nothing but what is run can be shown, where other tasks have results that ship."""
    return without_results(bench.suite) if bench.settings.baselines else []


def _plan(path: Path) -> dict[str, Any] | None:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return held if isinstance(held, dict) else None


def _require_same(every: Sequence[Cell]) -> None:
    """Refuse to take rows of other settings for those that are asked for."""
    for cell in every:
        known = cell.row()
        if known is None:
            continue
        asked = head(cell)
        for name in ("words", "factors"):
            if known.get(name) != asked[name]:
                raise ConfigError(
                    f"{cell.row_path} must be of the settings that are asked for, got {known.get(name)} "
                    f"where {asked[name]} are meant; try another `name=`, or removing that folder."
                )


def _tell_refused(bench: Bench, console: Console) -> None:
    for task, labels in bench.refused.items():
        for label, why in labels.items():
            console.print(
                f"{label} is left out of {task}: {why}", highlight=False, markup=False, soft_wrap=True
            )


def _tell_without_results(bench: Bench, console: Console) -> None:
    if names := _without_results(bench):
        console.print(
            f"No results ship for {', '.join(names)} as the suite has it: nothing stands there beside what "
            "is run now, and agents that are shown from results that ship have no part in it.",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
