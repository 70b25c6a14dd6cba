"""What a person sees while a run goes: a bar and numbers, or plain lines where there is no terminal."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from unirl_env.run.record.logbook import of_phases

BLOCKS = "▁▂▃▄▅▆▇█"
RECENT = 10
HISTORY = 24


class RunProgress:
    """Reward, KL, masked fraction, images per second and time left of a run.

    Args:
        console: Where to write.
        name: The run's name.
        total: Its iterations.
        done: Those that were finished before.
        enabled: False writes nothing but messages.
    """

    def __init__(self, console: Console, name: str, total: int, done: int = 0, enabled: bool = True):
        self.console, self.total, self.done, self.enabled = console, total, done, enabled
        self._seconds: deque[float] = deque(maxlen=RECENT)
        self._rewards: deque[float] = deque(maxlen=HISTORY)
        self._live: Live | None = None
        self._numbers = Text("", no_wrap=True)
        if enabled and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", style="bold", markup=False),
                BarColumn(bar_width=None, complete_style="cyan", finished_style="green"),
                MofNCompleteColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[left]}"),
                console=console,
                expand=True,
            )
            self._task = self._bar.add_task(name, total=total, completed=done, left="")
            # stdout stays as it is: a redirected stream would hide the tracebacks of worker processes.
            self._live = Live(Group(self._bar, self._numbers), console=console, refresh_per_second=4)

    def __enter__(self) -> RunProgress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, message: str) -> None:
        """A line of its own, above the bar."""
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)

    def warn(self, what: str, sentence: str) -> None:
        """An alarm, in words that stay."""
        self.console.print(
            f"[bold yellow]Alarm ({escape(what)}):[/] {escape(sentence)}", highlight=False, soft_wrap=True
        )

    def doing(self, what: str) -> None:
        """What goes on between iterations; gone when the next one is shown."""
        if self._live is not None:
            self._show(Text(f"  {what} ...", style="dim"))
        elif self.enabled:
            self.say(f"{what} ...")

    def advance(self, row: Mapping[str, Any]) -> None:
        """Show a finished iteration."""
        self.done = row["iteration"]
        self._seconds.append(row.get("seconds", 0.0))
        if _number(row.get("reward")):
            self._rewards.append(row["reward"])
        parts = describe(row)
        if self._live is not None:
            self._bar.update(self._task, completed=self.done, left=f"{clock(self.left())} left")
            line = Text("  ", no_wrap=True, overflow="ellipsis")
            line.append(parts[0], style="bold cyan").append(f" {sparkline(self._rewards)}", style="cyan")
            self._show(line.append("   " + "   ".join(parts[1:])))
        elif self.enabled:
            width = len(str(self.total))
            head = f"[{self.done:>{width}}/{self.total}]"
            self.say("  ".join([head, *parts, f"{clock(self.left())} left"]))

    def left(self) -> float:
        """Seconds that the remaining iterations will take, by the pace of the last ones."""
        pace = sum(self._seconds) / len(self._seconds) if self._seconds else 0.0
        return pace * max(0, self.total - self.done)

    def _show(self, numbers: Text) -> None:
        self._numbers = numbers
        self._live.update(Group(self._bar, numbers), refresh=True)


def waiting(console: Console, what: str) -> AbstractContextManager[Any]:
    """A sign of life: a spinner, or a line where there is no terminal."""
    if console.is_terminal:
        return console.status(f"{what} ...")
    console.print(f"{what} ...")
    return nullcontext()


def describe(row: Mapping[str, Any]) -> list[str]:
    """The numbers of one iteration that say how a run goes, in words."""
    parts = [f"reward {row['reward']:.3f}" if _number(row.get("reward")) else "reward none (all failed)"]
    for label, names, form in (
        ("KL", ("kl", "approx_kl"), "{:.1e}"),
        ("masked", ("masked_fraction", "clip_fraction"), "{:.0%}"),
        ("samples/s", ("episodes_per_second",), "{:.0f}"),
    ):
        value = _written(row, names, form)
        if value:
            parts.append(f"{value} {label}" if "/" in label else f"{label} {value}")
    if _number(row.get("no_picture")) and row["no_picture"] > 0:
        parts.append(f"{row['no_picture']:.0%} without picture")
    failed = row.get("reward/failed")
    if _number(failed) and failed > 0:
        parts.append(f"{failed:g} failed scores")
    return parts


def _written(row: Mapping[str, Any], names: Sequence[str], form: str) -> str:
    """The first of the numbers that there is; of several phases those of each, with the phase's name."""
    known = [name for name, value in row.items() if _number(value)]
    found = next(filter(None, (of_phases(name, known) for name in names)), {})
    return ", ".join(f"{phase} {form.format(row[name])}".strip() for phase, name in found.items())


def sparkline(values: deque[float]) -> str:
    """The recent course of a number in block characters."""
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((value - low) * scale)] for value in values)


def clock(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
