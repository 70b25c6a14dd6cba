"""Cells over processes: each plays one after another, and one that dies takes its own cell with it only."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from unirl_env.bench.bench_settings import BenchSettings
from unirl_env.bench.cells import Cell
from unirl_env.bench.player import Player
from unirl_env.bench.rows import CRASHED, DONE, failed_row
from unirl_env.run.progress import clock
from unirl_env.settings import RunConfig

Row = dict[str, Any]


@dataclass
class Schedule:
    """Plays cells on as many processes as there is room for.

    Args:
        settings: Of the bench.
        console: Where a person reads.
        needs: The settings of a run of each kind, which say how many processes a run starts itself.
    """

    settings: BenchSettings
    console: Console
    needs: Sequence[RunConfig] = ()
    _attempts: dict[str, int] = field(default_factory=dict)

    @property
    def workers(self) -> int:
        """Processes at once; Ray must run."""
        if self.settings.workers is not None:
            return self.settings.workers
        import ray

        there = ray.cluster_resources()
        if self.settings.gpus_per_run > 0:
            return max(1, int(there.get("GPU", 0) / self.settings.gpus_per_run))
        # Ray counts more cores than this machine has; those of several machines are counted by somebody else.
        cores = os.cpu_count() or 1 if len(ray.nodes()) == 1 else int(there.get("CPU", 1))
        return max(1, cores // self.settings.threads)

    def play(self, cells: Sequence[Cell], what: str, tuning: bool = False) -> list[Row]:
        """The rows of all cells, in their order; those that are kept already are not played again.

        Raises:
            KeyboardInterrupt: After Ctrl-C; what is finished is kept.
        """
        rows: dict[str, Row] = {cell.name: row for cell in cells if (row := cell.row()) is not None}
        left = deque(cell for cell in cells if cell.name not in rows)
        with _Bar(self.console, what, len(cells), len(rows)) as bar:
            if left:
                self._play(left, rows, bar, tuning)
        return [rows[cell.name] for cell in cells]

    def _play(self, left: deque[Cell], rows: dict[str, Row], bar: _Bar, tuning: bool) -> None:
        import ray

        self._start()
        options: dict[str, Any] = {"num_cpus": self.settings.threads, "num_gpus": self.settings.gpus_per_run}
        Remote: Any = ray.remote(**options)(Player)
        idle = [Remote.remote(self.settings.threads) for _ in range(min(self.workers, len(left)))]
        busy: dict[Any, tuple[Any, Cell]] = {}
        player: Any
        try:
            while left or busy:
                while left and idle:
                    player, cell = idle.pop(), left.popleft()
                    busy[player.play.remote(cell, tuning)] = player, cell
                for ready in ray.wait(list(busy), num_returns=1, timeout=1.0)[0]:
                    player, cell = busy.pop(ready)
                    row = self._taken(ready, cell, left)
                    if row is None or row.pop("lost", False):
                        player = Remote.remote(self.settings.threads)
                    idle.append(player)
                    if row is not None:
                        rows[cell.name] = row
                        if cell.row() is None:  # played on another machine, whose disk is another one
                            cell.keep(row)
                        bar.advance(cell, row)
                bar.tick()
        finally:
            for player in [*idle, *(player for player, _ in busy.values())]:
                ray.kill(player)

    def _taken(self, ready: Any, cell: Cell, left: deque[Cell]) -> Row | None:
        """The row that was played; None where the process died and the cell is to be begun again."""
        import ray

        try:
            return dict(ray.get(ready))
        except ray.exceptions.RayActorError as error:
            tried = self._attempts[cell.name] = self._attempts.get(cell.name, 0) + 1
            if tried < self.settings.attempts:
                left.appendleft(cell)
                return None
            cause = (str(error).strip().splitlines() or ["no cause is known"])[0]
            row = failed_row(cell, CRASHED, f"The process of this run died {tried} times: {cause}")
            cell.keep(row)
            return {**row, "lost": True}
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, BaseException):
                raise error.cause from None
            raise

    def _start(self) -> None:
        from unirl_env.agents.cluster import start_ray

        within = max(
            (cfg.rollout.num_env_runners + cfg.rollout.num_learners for cfg in self.needs), default=0
        )
        count = self.settings.workers or (os.cpu_count() or 1) // self.settings.threads
        start_ray(max(1, count) * (self.settings.threads + within))


class _Bar:
    """How far the bench is, or a line for each run where there is no terminal."""

    def __init__(self, console: Console, what: str, total: int, done: int):
        self.console, self.what, self.total, self.done = console, what, total, done
        self._begun = done
        self._bar = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=None, complete_style="cyan", finished_style="green"),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            expand=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=total, completed=done, left="")

    def __enter__(self) -> _Bar:
        self._bar.start()
        if not self.console.is_terminal and self.done < self.total:
            self.console.print(f"{self.what}: {self.done} of {self.total} runs are there.", highlight=False)
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def advance(self, cell: Cell, row: Row) -> None:
        """A run more."""
        self.done += 1
        self.tick()
        label = f"{cell.task.name} {cell.contestant.label} seed {cell.seed}"
        if row["status"] != DONE:
            said = f"[yellow]{row['status']}[/] {escape(label)}: {escape(row['error'])}"
            self.console.print(said, highlight=False, soft_wrap=True)
        elif not self.console.is_terminal:
            score = f"{row['score']:.4g}"
            said = f"[{self.done}/{self.total}] {label}: {score}  {self._left()}"
            self.console.print(said, highlight=False, markup=False, soft_wrap=True)

    def tick(self) -> None:
        """Show the time that is left."""
        self._bar.update(self._task, completed=self.done, left=self._left())

    def _left(self) -> str:
        elapsed = self._bar.tasks[0].elapsed or 0.0
        played = self.done - self._begun
        return f"{clock(elapsed / played * (self.total - self.done))} left" if played else ""
