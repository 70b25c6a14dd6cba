"""A cell of a bench: one agent on one task under one seed, which is one ordinary run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unirl_env.bench.configurations import configured
from unirl_env.bench.contestants import Contestant
from unirl_env.bench.suite import SUITES, Suite, Task
from unirl_env.run.compose.chosen import settings
from unirl_env.run.record.files import replace_text
from unirl_env.run.record.folder import RunFolder
from unirl_env.run.record.logbook import as_json
from unirl_env.settings import RunConfig

QUIET = ("logging.tensorboard=false", "logging.wandb=null", "logging.progress=false", "resume=auto")


@dataclass(frozen=True)
class Cell:
    """What is to be run, and where it goes.

    Attributes:
        bench: The bench's folder.
        task: The task.
        contestant: The agent.
        seed: Of the run.
        settings: Of every run of the bench, before and behind those of task and agent.
        directory: A folder with recipes of the suite's own.
        part: What the run is for: `runs`, which are reported, or `tuning/<configuration>`.
    """

    bench: Path
    task: Task
    contestant: Contestant
    seed: int
    settings: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    directory: str | None = None
    part: str = "runs"

    @property
    def name(self) -> str:
        """What tells it from the others, a relative path."""
        return f"{self.part}/{self.task.name}/{self.contestant.label}/seed_{self.seed}"

    @property
    def folder(self) -> RunFolder:
        """Where the run lies."""
        return RunFolder(self.bench / self.name)

    @property
    def row_path(self) -> Path:
        """Where its row is kept, beside the runs' folders, which are their own."""
        return self.bench / "rows" / f"{self.name}.json"

    @property
    def log(self) -> Path:
        """What the run said to people."""
        return self.bench / "logs" / f"{self.name}.log"

    @property
    def words(self) -> list[str]:
        """What makes the run, as `train` would be told, without its configuration."""
        before, behind = self.settings
        path = self.folder.path
        place = [f"name={path.name}", f"logging.folder={path.parent}", f"seed={self.seed}"]
        return [*before, *self.task.settings, *self.contestant.words, *behind, *QUIET, *place]

    @property
    def command(self) -> list[str]:
        """The command that does the same run without its configuration, for its record."""
        return ["python", "-m", "unirl_env.train", f"--config-name={self.task.recipe}", *self.words]

    def compose(self) -> RunConfig:
        """The run's settings.

        Raises:
            ConfigError: If they do not fit.
        """
        recipe = self.task.recipe
        if self.directory is not None and recipe.endswith((".yaml", ".yml")):
            recipe = str(Path(self.directory) / recipe)
        cfg = settings(recipe, self.words, self.directory, trust=True)
        return configured(cfg, dict(self.contestant.configuration))

    def row(self) -> dict[str, Any] | None:
        """Its row, if it has come to an end."""
        try:
            held = json.loads(self.row_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return held if isinstance(held, dict) else None

    def keep(self, row: Mapping[str, Any]) -> None:
        """Note its row, whole or not at all."""
        self.row_path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(self.row_path, json.dumps(as_json(row)) + "\n")


def cells(
    bench: Path,
    suite: Suite,
    entries: Sequence[Contestant],
    seeds: Sequence[int],
    settings: Sequence[str] = (),
    part: str = "runs",
) -> list[Cell]:
    """All cells: seed by seed, so that a bench that is stopped has whole seeds."""
    directory = None if suite.folder == SUITES else str(suite.folder)
    words = (suite.settings, tuple(settings))
    return [
        Cell(bench, task, entry, seed, words, directory, part)
        for seed in seeds
        for task in suite.tasks.values()
        for entry in entries
    ]
