"""The last words of a run: what it reached, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table

from unirl_env.monitor.alarm import Finding
from unirl_env.run.record.folder import RunFolder
from unirl_env.run.record.logbook import read_rows

Row = Mapping[str, Any]

SETS = {"train": "training prompts", "heldout": "held-out prompts"}
REWARDS = {"reward": "reward", "heldout": "held-out reward"}


def headline(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Before and after, for each reward on each prompt set: of `score_rows`, the rewards themselves.

    Args:
        rows: The rows of `evaluation.jsonl`.

    Returns:
        Rows of `score_rows`, with `reward` and `set` in words.
    """
    whole = [row for row in score_rows(rows) if "/" not in row["key"]]
    known = [*REWARDS, *(row["key"] for row in whole)]
    return [
        row | {"reward": REWARDS.get(row["key"], row["key"]), "set": SETS.get(row["set"], row["set"])}
        for row in sorted(whole, key=lambda row: known.index(row["key"]))
    ]


def score_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every part of every reward on each prompt set, before and after.

    Args:
        rows: The rows of `evaluation.jsonl`.

    Returns:
        Mappings with `set`, `key` (`reward`, `reward/<part>`, `heldout`, ...), `before` and `after` (each
        with mean, std, low, high, failed, absent), `difference` (with mean, low, high, or None), `first` and
        `last` iteration; the parts of a reward follow it.
    """
    found = []
    for name in dict.fromkeys(row["set"] for row in rows):
        mine = [row for row in rows if row["set"] == name]
        for key in dict.fromkeys(key for row in mine for key in row["rewards"]):
            known = [row for row in mine if key in row["rewards"]]
            first, last = known[0], known[-1]
            found.append(
                {
                    "set": name,
                    "key": key,
                    "before": first["rewards"][key],
                    "after": last["rewards"][key],
                    "difference": last.get("difference", {}).get(key),
                    "first": first["iteration"],
                    "last": last["iteration"],
                }
            )
    return found


def label(key: str) -> str:
    """What a score is called, set in under the reward that it is a part of."""
    reward, _, part = key.partition("/")
    return "  " * (1 + part.count("/")) + part.rpartition("/")[2] if part else REWARDS.get(reward, reward)


def resume_command(folder: RunFolder, *overrides: str) -> str:
    """What to type to go on with a run, quoted for a shell."""
    return shlex.join(["python", "-m", "unirl_env.train", f"resume={folder.path}", *overrides])


def print_summary(console: Console, folder: RunFolder, ended_by: Finding | None = None) -> None:
    """Print before and after, the parts of the rewards, the alarms that rang, and the next commands.

    Args:
        console: Where to.
        folder: The run.
        ended_by: The alarm that ended it.
    """
    evaluations = read_rows(folder.path / "evaluation.jsonl")
    rows = headline(evaluations)
    last = rows[0]["last"] if rows else 0
    table = Table.grid(padding=(0, 2))
    table.add_row("", "[dim]before[/]", "[dim]after[/]", "[dim]difference, 95 % interval[/]")
    for row in rows:
        table.add_row(
            escape(f"{row['reward']}, {row['set']}"),
            number(row["before"]["mean"]),
            f"[bold]{number(row['after']['mean'])}[/]",
            gain(row["difference"]),
        )
    lost = [row["no_picture"] for row in read_rows(folder.path / "metrics.jsonl") if _known(row)]
    if lost:
        table.add_row("texts without a picture, training", f"{lost[0]:.0%}", f"[bold]{lost[-1]:.0%}[/]", "")
    console.print(Panel(table, title=escape(f"{folder.path.name}: {last} iterations"), expand=False))
    parts = parts_table(evaluations)
    if parts is not None:
        console.print(Padding(parts, (0, 2)))
    for alarm in read_rows(folder.path / "alarms.jsonl"):
        console.print(alarm_line(alarm), highlight=False, soft_wrap=True)
    more = f"iterations={2 * max(1, last)}"
    if ended_by is not None:
        why = f"The run ended at iteration {last}, because `alarm.stop` names {ended_by.signal}."
        console.print(why, highlight=False, markup=False, soft_wrap=True)
        more = "alarm.stop=none"
    console.print(
        f"Report     {folder.report}\n"
        f"Compare    {shlex.join(['python', '-m', 'unirl_env.evaluate', '--run', str(folder.path)])}\n"
        f"Go on      {resume_command(folder, more)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def parts_table(rows: Sequence[Row]) -> Table | None:
    """The means of all parts before and after, with a column for each prompt set.

    Args:
        rows: The rows of `evaluation.jsonl`.

    Returns:
        The table; None where no reward has parts.
    """
    scores = score_rows(rows)
    if not any("/" in row["key"] for row in scores):
        return None
    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="dim")
    sets = dict.fromkeys(row["set"] for row in scores)
    for name in ("parts", *(SETS.get(name, name) for name in sets), "failed"):
        table.add_column(name, justify="left" if name == "parts" else "right", no_wrap=True)
    for key in dict.fromkeys(row["key"] for row in scores):
        mine = {row["set"]: row for row in scores if row["key"] == key}
        steps = [
            f"{number(mine[name]['before']['mean'])} → [bold]{number(mine[name]['after']['mean'])}[/]"
            if name in mine
            else "-"
            for name in sets
        ]
        failed = sum(row["before"]["failed"] + row["after"]["failed"] for row in mine.values())
        table.add_row(escape(label(key)), *steps, f"[yellow]{failed}[/]" if failed else "0")
    return table


def alarm_line(alarm: Row) -> str:
    """A row of `alarms.jsonl` for a terminal."""
    head = f"[bold yellow]Alarm ({escape(alarm['signal'])}), iteration {alarm['iteration']}:[/]"
    return f"{head} {escape(alarm['sentence'])}"


def _known(row: dict[str, Any]) -> bool:
    return row.get("no_picture") is not None


def number(value: float | None) -> str:
    """A mean for people; a dash where every score failed."""
    return "-" if value is None else f"{value:.3f}"


def gain(part: dict[str, Any] | None) -> str:
    """A difference with its interval."""
    if not part or part["mean"] is None:
        return "-"
    if part["low"] is None or part["high"] is None:
        return f"{part['mean']:+.3f}"
    return f"{part['mean']:+.3f}  [{part['low']:+.3f}, {part['high']:+.3f}]".replace("[", r"\[")
