"""A run's folder: what lies where, which folder a run takes, and who may write to it.

runs/<name>/
config.yaml         every setting, resolved
provenance.json     versions, model and prompt fingerprints, command lines
metrics.jsonl       one object per iteration          evaluation.jsonl   one per evaluation and set
*.aside.jsonl       lines of iterations that were done again from an older checkpoint
tb/                 TensorBoard events                checkpoints/<iteration>/
adapters/           the trained LoRA                  pictures/<iteration>/<set>/  samples, texts as well
report.html

Everything else that lies there is a person's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from unirl_env.errors import CheckpointError, ConfigError
from unirl_env.run.record.checkpoint import MANIFEST
from unirl_env.run.record.files import is_dangling, locked, remove_files

CONFIG, PROVENANCE = "config.yaml", "provenance.json"
BEGUN = ("metrics.jsonl", "evaluation.jsonl", "checkpoints", "pictures")
"""What a run has when something has happened in it."""
START = r"\.lock|\.?config\.yaml|\.?provenance\.json"
EVENTS = r"events\.out\.tfevents\..*"
"""What a start leaves in which nothing has happened yet, in the folder and in `tb/`."""


@dataclass(frozen=True)
class RunFolder:
    """The paths inside one run's folder."""

    path: Path

    @property
    def config(self) -> Path:
        """Every setting of the run, resolved."""
        return self.path / CONFIG

    @property
    def provenance(self) -> Path:
        """Versions, fingerprints and command lines."""
        return self.path / PROVENANCE

    @property
    def checkpoints(self) -> Path:
        """One folder for each checkpoint."""
        return self.path / "checkpoints"

    @property
    def adapters(self) -> Path:
        """The trained adapters, in the form of the model family's own library."""
        return self.path / "adapters"

    @property
    def weights(self) -> Path:
        """All trained weights, in the form of the model family's own library."""
        return self.path / "weights"

    @property
    def pictures(self) -> Path:
        """What evaluations drew."""
        return self.path / "pictures"

    @property
    def report(self) -> Path:
        """The page that shows the run."""
        return self.path / "report.html"

    def create(self) -> None:
        """Claim the folder for a fresh run.

        Raises:
            ConfigError: If it already holds something.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if _occupied(self.path):
            raise ConfigError(
                f"`name` must name a folder that is empty or not there yet, got {self.path}, which holds a "
                f"run; try `resume=auto` to continue it, or another `name=`."
            )

    @property
    def begun(self) -> bool:
        """Whether something has happened in the run."""
        return any(os.path.lexists(self.path / name) for name in BEGUN)

    def withdraw(self) -> None:
        """Take away what a start has left in which nothing happened; with it the folder, if it is empty."""
        if not self.begun:
            remove_files(self.path.resolve(), START, inner=[("tb", EVENTS)])

    def lock(self) -> IO[str]:
        """Keep other processes from writing here until the returned file is closed.

        Raises:
            ConfigError: If another process is at work in this folder.
        """
        return locked(self.path, "run")


def free_name(folder: Path, name: str) -> str:
    """`name`, or the first of `name-2`, `name-3`, ... whose folder holds nothing yet."""
    candidate, number = name, 1
    while _occupied(folder / candidate):
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def of_name(folder: Path, name: str) -> RunFolder:
    """The run of this name; a link such as `latest` to another run beside it means that one."""
    path = folder / name
    for _ in range(40):  # Links to links, but not in a circle.
        target = Path(os.path.normpath(path.parent / path.readlink())) if path.is_symlink() else path
        if target == path or target.parent != path.parent:
            break
        path = target
    return RunFolder(path)


def _occupied(folder: Path) -> bool:
    if is_dangling(folder):
        return True
    if not folder.is_dir():
        return folder.exists()
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    # A lock is what a start leaves that was killed while the model loaded; a little later, where the weights
    # come from as well. A run is what has settings.
    return CONFIG in names or bool(names - {PROVENANCE})


def locate(resume: str) -> tuple[RunFolder, Path | None]:
    """The run that a path belongs to, and the checkpoint if the path names one.

    Links are followed: `latest` may lie beside the runs, in a run's folder or among its checkpoints, and a
    checkpoint or a run's folder may lie on another disk.

    Raises:
        CheckpointError: If nothing there can be continued.
    """
    path = Path(resume).expanduser()
    path = Path(os.path.abspath(path)) if not path.is_absolute() else path
    if (path / CONFIG).is_file():
        return of_name(path.parent, path.name), None
    if path.is_dir() and ((path / MANIFEST).is_file() or path.parent.name == "checkpoints"):
        # Where the link lies, and where it leads to.
        for place in (path, path.resolve()):
            for run in (place.parent.parent, place.parent):
                if (run / CONFIG).is_file():
                    return of_name(run.parent, run.name), path
    raise CheckpointError(
        f"`resume` must be `auto`, a run's folder, or one of its checkpoints, got {resume}, which is "
        f"{'a link to nowhere' if is_dangling(path) else 'none'}; try `runs/<name>` or "
        f"`runs/<name>/checkpoints/<iteration>`."
    )
