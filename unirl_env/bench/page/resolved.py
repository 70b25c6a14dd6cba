"""The settings that agents ran with, as their runs wrote them down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from unirl_env.bench.page.reading import Agent, Bench, Row
from unirl_env.errors import ConfigError
from unirl_env.run.compose.yaml import flat, read_yaml
from unirl_env.run.record.folder import CONFIG

OWN = ("name", "seed", "logging.folder", "resume")
"""What belongs to a run and not to an agent."""


def inside(folder: Path, name: str) -> Path | None:
    """The folder of a run, if it lies in that of the bench: a file from elsewhere must not open others."""
    place = folder / name
    if not name or Path(name).is_absolute() or ".." in Path(name).parts or not place.is_dir():
        return None
    return place


def with_settings(bench: Bench, folder: Path) -> Bench:
    """The bench with every setting of its agents, from a run of each on the first task that all have played.

    Args:
        bench: The bench; agents keep what it says of them, where no run says otherwise.
        folder: Where it lies.
    """
    for task in bench.tasks:
        known = {label: _settings(folder, bench.cell(task, label)) for label in bench.agents}
        if known and all(known.values()):
            agents = {label: _joined(bench.agents[label], found) for label, found in known.items()}
            return replace(bench, agents=agents)
    return bench


def _settings(folder: Path, rows: list[Row]) -> dict[str, Any]:
    for row in rows:
        place = inside(folder, row.folder)
        if place is None or not (place / CONFIG).is_file():
            continue
        try:
            found = flat(read_yaml(place / CONFIG), public=True)
        except (ConfigError, ValueError):
            continue
        return {name: value for name, value in found.items() if name not in OWN}
    return {}


def _joined(agent: Agent, found: dict[str, Any]) -> Agent:
    return replace(agent, settings={**agent.settings, **found})
