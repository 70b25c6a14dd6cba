"""The last words of a run: what it reached, and what to do next."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from unirl_env.logbook import read_rows
from unirl_env.run_folder import RunFolder

__all__ = ["headline", "print_summary", "resume_command"]

SETS = {"train": "training prompts", "heldout": "held-out prompts"}
REWARDS = {"reward": "reward", "heldout": "held-out reward"}


def headline(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Before and after, for each reward on each prompt set.

    Args:
        rows: The rows of `evaluation.jsonl`.

    Returns:
        Mappings with `reward`, `set`, `before`, `after` (each with mean, low, high), `difference` (or None),
        `first` and `last` iteration.
    """
    found = []
    for key, reward in REWARDS.items():
        for name in dict.fromkeys(row["set"] for row in rows):
            mine = [row for row in rows if row["set"] == name and key in row["rewards"]]
            if mine:
                first, last = mine[0], mine[-1]
                found.append(
                    {
                        "reward": reward,
                        "set": SETS.get(name, name),
                        "key": key,
                        "before": first["rewards"][key],
                        "after": last["rewards"][key],
                        "difference": last.get("difference", {}).get(key),
                        "first": first["iteration"],
                        "last": last["iteration"],
                    }
                )
    return found


def resume_command(folder: RunFolder, *overrides: str) -> str:
    """What to type to go on with a run."""
    return " ".join(["python -m unirl_env.train", f"resume={folder.path}", *overrides])


def print_summary(console: Console, folder: RunFolder) -> None:
    """Print before and after, and the next commands."""
    rows = headline(read_rows(folder.path / "evaluation.jsonl"))
    last = rows[0]["last"] if rows else 0
    table = Table.grid(padding=(0, 2))
    table.add_row("", "[dim]before[/]", "[dim]after[/]", "[dim]difference, 95 % interval[/]")
    for row in rows:
        table.add_row(
            f"{row['reward']}, {row['set']}",
            number(row["before"]["mean"]),
            f"[bold]{number(row['after']['mean'])}[/]",
            gain(row["difference"]),
        )
    lost = [row["no_picture"] for row in read_rows(folder.path / "metrics.jsonl") if _known(row)]
    if lost:
        table.add_row("texts without a picture, training", f"{lost[0]:.0%}", f"[bold]{lost[-1]:.0%}[/]", "")
    console.print(Panel(table, title=f"{folder.path.name}: {last} iterations", expand=False))
    console.print(
        f"Report     {folder.report}\n"
        f"Compare    python -m unirl_env.evaluate --run {folder.path}\n"
        f"Go on      {resume_command(folder, f'iterations={2 * max(1, last)}')}",
        highlight=False,
        soft_wrap=True,
    )


def _known(row: dict[str, Any]) -> bool:
    return row.get("no_picture") is not None


def number(value: float | None) -> str:
    """A mean for people; a dash where every score failed."""
    return "-" if value is None else f"{value:.3f}"


def gain(part: dict[str, Any] | None) -> str:
    """A difference with its interval."""
    if not part or part["mean"] is None:
        return "-"
    return f"{part['mean']:+.3f}  [{part['low']:+.3f}, {part['high']:+.3f}]".replace("[", r"\[")
