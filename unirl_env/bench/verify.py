"""The first iterations of a run done again: the same numbers? and do they lie where such runs lie?"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from unirl_env.arguments.values import is_number
from unirl_env.bench.baselines import every_stored, one_more
from unirl_env.bench.rows import settings_key
from unirl_env.errors import ConfigError
from unirl_env.run.compose.yaml import read_yaml
from unirl_env.run.progress import waiting
from unirl_env.run.record.folder import RunFolder, locate
from unirl_env.run.record.logbook import read_rows
from unirl_env.run.trust import require_trust
from unirl_env.settings import RunConfig
from unirl_env.settings.run_config import pinned

CLOCKS = ("seconds", "episodes_per_second", "sync_bytes")
ROUNDING = 1e-3
"""The relative difference that another machine's or release's kernels may leave in the first iterations."""
BAND = 0.95


@dataclasses.dataclass(frozen=True)
class Again:
    """What came of it.

    Attributes:
        iterations: How many were done again.
        difference: The largest relative difference of a metric; 0 is the same to the last bit.
        where: The metric and the iteration of it.
        outside: Iterations whose training reward lies outside the known band.
        points: In how many iterations there is a band.
        band: How many stored runs it is of; 0 if none are of these settings.
    """

    iterations: int
    difference: float
    where: str
    outside: tuple[int, ...]
    points: int
    band: int

    @property
    def sound(self) -> bool:
        """Whether nothing speaks against the run: of a sound one, one iteration in twenty leaves the band."""
        return self.difference <= ROUNDING and len(self.outside) <= max(1, self.points // 5)


def verify(path: Path, iterations: int, console: Console, trust: bool = False) -> Again:
    """Do the first iterations of a run again, beside it, and hold the numbers against its record.

    Args:
        path: The run's folder.
        iterations: How many; at most those on record.
        console: Where a person reads.
        trust: Whether the settings may name code though this account has not signed them.

    Raises:
        ConfigError: If nothing is on record, or the settings are not to be trusted.
    """
    from unirl_env.run.launch import launch

    folder, _ = locate(str(path))
    cfg = read_yaml(folder.config)
    require_trust(folder.config, cfg, trust)
    recorded = read_rows(folder.path / "metrics.jsonl")
    count = min(iterations, len(recorded))
    if count < 1:
        raise ConfigError(
            f"`--iterations` must be at least 1, of a run with as many on record, got {iterations} and "
            f"{len(recorded)} in {folder.path}."
        )
    with TemporaryDirectory() as place:
        logging = dataclasses.replace(cfg.logging, folder=place, eval_every=0, eval_prompts=1, eval_samples=1)
        logging.tensorboard, logging.wandb = False, None
        again = dataclasses.replace(pinned(cfg), iterations=count, name="again", resume=None, logging=logging)
        with waiting(console, f"Doing the first {count} iterations of {folder.path} again"):
            launch(again, Console(file=io.StringIO()), ["bench", "verify"])
        rows = read_rows(RunFolder(Path(place) / "again").path / "metrics.jsonl")
    difference, where = compared(recorded[:count], rows)
    found = Again(count, difference, where, *outside_band(cfg, recorded))
    _tell(found, len(recorded), console)
    return found


def compared(recorded: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> tuple[float, str]:
    """The largest relative difference of a number that both have, and where it is."""
    worst, where = 0.0, ""
    for before, after in zip(recorded, rows, strict=True):
        for name in before.keys() & after.keys():
            if name.split("/")[0] in CLOCKS or not is_number(before[name]):
                continue
            if not is_number(after[name]):
                worst, where = math.inf, f"{name} of iteration {before['iteration']}"
                continue
            # Of numbers that are tiny beside the others of a run, rounding is no difference.
            size = max(abs(before[name]), abs(after[name]), 1e-6)
            apart = abs(before[name] - after[name]) / size
            if apart > worst:
                worst, where = apart, f"{name} of iteration {before['iteration']}"
    return worst, where


def outside_band(cfg: RunConfig, recorded: Sequence[Mapping[str, Any]]) -> tuple[tuple[int, ...], int, int]:
    """Where a run's training reward leaves the band of stored runs of the same settings under other seeds.

    The band is where one more run lies with a chance of 95 %, at each iteration by itself (`one_more`).

    Returns:
        The iterations, in how many there is a band, and of how many runs it is.
    """
    key = settings_key(cfg)
    known = [row["curve"] for row in every_stored() if row.get("settings_key") == key and row["curve"]]
    mine = {row["iteration"]: row.get("reward") for row in recorded}
    values: dict[int, list[float]] = {}
    for curve in known:
        for iteration, reward in zip(curve["iteration"], curve["reward"], strict=True):
            if is_number(reward):
                values.setdefault(iteration, []).append(reward)
    outside, points = [], 0
    for iteration, rewards in sorted(values.items()):
        own = mine.get(iteration)
        if len(rewards) < 3 or not is_number(own):
            continue
        points += 1
        low, high = one_more(rewards, BAND)
        if not low - 1e-12 <= own <= high + 1e-12:
            outside.append(iteration)
    return tuple(outside), points, len(known)


def _tell(found: Again, total: int, console: Console) -> None:
    table = Table(title=f"The first {found.iterations} of {total} iterations again", title_justify="left")
    table.add_column("what")
    table.add_column("found", overflow="fold")
    same = "the same to the last bit" if found.difference == 0 else f"{found.difference:.2g} in {found.where}"
    table.add_row("largest relative difference", same)
    band = "no stored runs of these settings"
    if found.band:
        band = f"of {found.band} stored runs; outside: {list(found.outside) or 'none'}"
    table.add_row("known band of the training reward", band)
    table.add_row("verdict", "sound" if found.sound else "not what is on record")
    console.print(table)
