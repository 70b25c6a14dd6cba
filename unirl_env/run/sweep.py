"""A sweep: `-m agent.lr=1e-4,3e-4 seed=0,1` does a run for each combination, one after another.

Each has a folder of its own, named after what differs; one that fails does not stop the others.
"""

from __future__ import annotations

import re
import shlex
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unirl_env.errors import ConfigError, UnirlError
from unirl_env.run.compose.overrides import alternatives, last_value, split
from unirl_env.run.interrupt import EXIT_CODE
from unirl_env.run.record.folder import RunFolder, free_name
from unirl_env.run.record.logbook import read_rows
from unirl_env.run.summary import gain, headline, number, resume_command
from unirl_env.settings import RunConfig

LONGEST = 120
"""Letters of a folder's name; file systems take 255 bytes."""
ENDS = {0: "done", 2: "refused", 3: "ended by an alarm", EXIT_CODE: "stopped"}


@dataclass
class Run:
    """One combination.

    Attributes:
        words: What is typed for it alone.
        cfg: Its settings; None if they could not be composed.
        error: Why it did not begin, or ended.
        code: Its exit code.
    """

    words: tuple[str, ...]
    cfg: RunConfig | None = None
    error: str = ""
    code: int | None = None

    @property
    def label(self) -> str:
        """What tells it from the others."""
        return " ".join(self.words) or "(all)"

    @property
    def folder(self) -> RunFolder | None:
        """Where it went."""
        return None if self.cfg is None else RunFolder(Path(self.cfg.logging.folder) / self.cfg.name)


def sweep(
    overrides: Sequence[str], recipe: str, directory: str | None, console: Console, program: Sequence[str]
) -> int:
    """Do a run for each combination of the values between commas.

    Args:
        overrides: What was typed, in its order; later keys vary fastest.
        recipe: Of all runs.
        directory: A folder with further recipes.
        console: Where a person reads.
        program: What starts a single run, for the record of each.

    Returns:
        0 if every run did all it was to do; else the exit code of the first that did not.

    Raises:
        UnirlError: If no combination has settings that fit, or `resume` names a single run.
    """
    fixed, swept = _parted(overrides)
    if last_value(overrides, "resume") not in (None, "auto"):
        raise ConfigError(
            "`resume` must be auto in a sweep, whose runs have folders of their own, got a single one; try "
            "`resume=auto`, or going on with it alone."
        )
    runs = [Run(words) for words in product(*swept)]
    options = ["--config-name", recipe, *(["--config-dir", directory] if directory else [])]
    mistakes = [error for run in runs if (error := _compose(run, fixed, recipe, directory)) is not None]
    if len(mistakes) == len(runs):
        raise mistakes[0]
    for place, run in enumerate(runs, 1):
        console.rule(escape(f"{place} of {len(runs)}: {run.label}"), style="dim")
        if run.cfg is not None:
            _do(run, console, [*program, *options, *fixed])
        else:
            console.print(run.error, highlight=False, markup=False, soft_wrap=True)
        if run.code == EXIT_CODE:
            break
    _print(runs, console)
    return next((run.code for run in runs if run.code), 0)


def _parted(overrides: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    fixed, swept = [], []
    for item in overrides:
        values = alternatives(item)
        if len(values) > 1:
            swept.append(values)
        else:
            fixed += values
    return fixed, swept


def _compose(run: Run, fixed: Sequence[str], recipe: str, directory: str | None) -> UnirlError | None:
    """Give a run its settings, or say why it has none."""
    from unirl_env.run.compose.chosen import settings

    try:
        run.cfg = settings(recipe, [*fixed, *run.words], directory)
    except UnirlError as error:
        run.error, run.code = f"{type(error).__name__}: {error}", 2
        return error
    parts = [split(word) for word in run.words]
    if not any(part.name == "name" for part in parts):
        tails = (f"{part.name.rpartition('.')[2]}={part.value}" for part in parts)
        name = re.sub(r"[^\w.=+-]+", "_", "-".join([run.cfg.name, *tails]))
        run.cfg.name = name[:LONGEST]
    return None


def _do(run: Run, console: Console, command: Sequence[str]) -> None:
    from unirl_env.run.launch import launch

    cfg = run.cfg
    assert cfg is not None
    try:
        if cfg.resume is None:
            cfg.name = free_name(Path(cfg.logging.folder), cfg.name)
        run.code = launch(cfg, console, [*command, *run.words, f"name={cfg.name}"])
    except UnirlError as error:
        run.error, run.code = f"{type(error).__name__}: {error}", 2
        console.print(run.error, highlight=False, markup=False, soft_wrap=True)
    except KeyboardInterrupt:
        run.code = EXIT_CODE
    except Exception as error:  # nobody foresaw it, and the other runs may be well
        traceback.print_exc(file=sys.stderr)
        run.error, run.code = f"{type(error).__name__}: {error}", 1


def _print(runs: Sequence[Run], console: Console) -> None:
    table = Table(title="The sweep", title_justify="left")
    table.add_column("run", overflow="fold")
    for name in ("before", "after", "difference, 95 %"):
        table.add_column(name, justify="right")
    table.add_column("end", overflow="fold")
    for run in runs:
        numbers = ["-", "-", "-"]
        if run.folder is not None and run.code not in (None, 2):
            for row in headline(read_rows(run.folder.path / "evaluation.jsonl"))[:1]:
                after = f"[bold]{number(row['after']['mean'])}[/]"
                numbers = [number(row["before"]["mean"]), after, gain(row["difference"])]
        end = "not begun" if run.code is None else ENDS.get(run.code, "failed")
        table.add_row(escape(run.label), *numbers, end)
    console.print(table)
    for run in runs:
        if run.error:
            said = f"{run.label}: {run.error}"
            console.print(said, highlight=False, markup=False, soft_wrap=True)
        elif run.code == EXIT_CODE and run.folder is not None:
            console.print(f"Go on  {resume_command(run.folder)}", markup=False, soft_wrap=True)
    reports = [run.folder.report for run in runs if run.folder is not None]
    if known := [shlex.quote(str(path)) for path in reports if path.exists()]:
        console.print("\n".join(["Reports", *known]), highlight=False, markup=False, soft_wrap=True)
