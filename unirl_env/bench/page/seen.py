"""Pictures, clips, texts or points of each agent for the same prompts under the same noise."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unirl_env.bench.page.findings import Findings
from unirl_env.bench.page.resolved import inside
from unirl_env.run.record.logbook import read_rows
from unirl_env.run.record.samples import drawn_paths, load_latents, load_texts
from unirl_env.run.report.cards import answers, are_drawn, drawn, gallery, scatter
from unirl_env.run.summary import SETS

PROMPTS, EACH, LARGEST = 3, 4, 160
"""Prompts of a task, samples of a prompt, and pixels of a picture: a page must stay one that can be sent."""
AGENTS = 12
BASE = "untrained"


def samples(found: Findings, folder: Path) -> str:
    """What the agents made on each task, as HTML; an empty text where no run has kept anything.

    Args:
        found: The bench.
        folder: Where it lies; the folders of runs are looked for below it.
    """
    parts = []
    for name, task in found.bench.tasks.items():
        try:
            shown = _task(found, folder, name)
        except (OSError, ValueError, KeyError, TypeError):  # Files that were cut off, or are somebody's own.
            shown = '<p class="lead">What the runs have kept cannot be read.</p>'
        if shown:
            parts.append(
                f'<details class="samples" open><summary><h3>{html.escape(task.title)}</h3></summary>'
                f"{shown}</details>"
            )
    return "".join(parts)


def _task(found: Findings, folder: Path, task: str) -> str:
    seed = _seed(found, task)
    if seed is None:
        return ""
    runs = {
        found.bench.agents[row.agent].title: place
        for agent in found.agents[:AGENTS]
        for row in found.bench.cell(task, agent)
        if row.seed == seed and row.done and (place := inside(folder, row.folder)) is not None
    }
    evaluations = {title: _readable(place) for title, place in runs.items()}
    sets = list(dict.fromkeys(row["set"] for rows in evaluations.values() for row in rows))
    for name in sorted(sets, key=lambda each: each != "heldout"):
        columns = _columns(runs, evaluations, name)
        shown = _shown(columns) if len(columns) > 1 else ""
        if shown:
            title = SETS.get(name, name)
            return f'<p class="lead">Seed {seed}, {html.escape(title)}, the first ones.</p>{shown}'
    return ""


def _seed(found: Findings, task: str) -> int | None:
    """The seed that most agents finished; the smallest of several."""
    done = [row.seed for row in found.bench.rows if row.task == task and row.done and row.folder]
    return min(done, key=lambda seed: (-done.count(seed), seed), default=None)


def _readable(place: Path) -> list[dict[str, Any]]:
    """The evaluations that have all that is shown."""
    rows = read_rows(place / "evaluation.jsonl")
    return [row for row in rows if _is_whole(row)]


def _is_whole(row: Mapping[str, Any]) -> bool:
    prompts, count, values = row.get("prompts"), row.get("samples"), row.get("values")
    if not isinstance(row.get("set"), str) or not isinstance(prompts, list) or not isinstance(values, dict):
        return False
    rewards = values.get("reward")
    return isinstance(count, int) and isinstance(rewards, list) and len(rewards) == len(prompts) * count


def _columns(
    runs: Mapping[str, Path], evaluations: Mapping[str, list[dict[str, Any]]], name: str
) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The last evaluation of each agent, and the first one of the first; all of the same prompts."""
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    asked: Any = None
    for title, rows in evaluations.items():
        mine = [row for row in rows if row["set"] == name]
        mine = [row for row in mine if _place(runs[title], row).is_dir()]
        if not mine:
            continue
        if asked is None:
            asked = (mine[0]["prompts"], mine[0]["samples"])
            if mine[0]["iteration"] == 0:
                found[BASE] = (_place(runs[title], mine[0]), mine[0])
        if (mine[-1]["prompts"], mine[-1]["samples"]) == asked and mine[-1]["iteration"] > 0:
            found[title] = (_place(runs[title], mine[-1]), mine[-1])
    return found


def _place(run: Path, row: Mapping[str, Any]) -> Path:
    return run / "pictures" / f"{row['iteration']:06d}" / Path(row["set"]).name


def _shown(columns: Mapping[str, tuple[Path, dict[str, Any]]]) -> str:
    folders = [folder for folder, _ in columns.values()]
    if are_drawn(folders):
        return drawn(columns, most=PROMPTS)
    if any(drawn_paths(folder) for folder in folders):
        return gallery(columns, most=PROMPTS, each=EACH, largest=LARGEST)
    if any(load_texts(folder) for folder in folders):
        return answers(columns, most=PROMPTS)
    if BASE not in columns or load_latents(folders[0]) is None:
        return ""
    clouds = [
        scatter(columns[BASE][0], folder, title=title)
        for title, (folder, _) in columns.items()
        if title != BASE
    ]
    return f'<div class="charts">{"".join(clouds)}</div>' if any(clouds) else ""
