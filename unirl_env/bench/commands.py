"""The commands of `python -m unirl_env.bench`, each a parser and a call."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from unirl_env.bench.bench_settings import BenchSettings, read_settings
from unirl_env.bench.suite import suites
from unirl_env.command_line import Parser
from unirl_env.errors import ConfigError

UNSOUND = 3
SUMMARIES = {
    "run": "Compare agents on the tasks of a suite: suite=quick agents=[grpo,drpo] seeds=10",
    "report": "Write a bench's page again, from its files alone",
    "compare": "Set two benches side by side, as a page, too: compare runs/bench/a runs/bench/b",
    "plan": "How many seeds, prompts and hours a wanted effect takes: suite=quick effect=0.02",
    "verify": "Do the first iterations of a run again: the same numbers, inside the known band?",
    "referee": "Score stored batches with losses: losses=[unirl_env.functional:grpo_loss,other:loss]",
}


def parser(name: str) -> argparse.ArgumentParser:
    """The command line of a command."""
    made = Parser(
        prog="python -m unirl_env.bench" + ("" if name == "run" else f" {name}"),
        description=SUMMARIES[name],
        epilog="Commands: " + "; ".join(f"{other}: {said}" for other, said in SUMMARIES.items()),
    )
    if name == "run":
        made.add_argument("--list", action="store_true", help="print the suites and stop")
    if name in ("report", "verify"):
        made.add_argument(
            "folder", type=Path, help="a bench's folder" if name == "report" else "a run's folder"
        )
    if name == "compare":
        made.add_argument("folders", type=Path, nargs=2, help="the folders of two benches")
    if name == "verify":
        made.add_argument("--iterations", type=int, default=3, help="how many are done again")
        made.add_argument("--trust", action="store_true", help="import what somebody else's run names")
    if name in ("run", "plan", "referee", "compare"):
        made.add_argument(
            "overrides", nargs="*", metavar="name=value", help="settings; see docs/benchmarking.md"
        )
    return made


def run(arguments: argparse.Namespace, console: Console, command: Sequence[str]) -> int:
    """Do a bench."""
    if arguments.list:
        console.print("\n".join(suites()), highlight=False, markup=False)
        return 0
    from unirl_env.bench.running import run_bench

    settings = read_settings(arguments.overrides, BenchSettings)
    try:
        run_bench(settings, console, command)
    except KeyboardInterrupt:
        console.print(
            "Stopped; every finished run is kept. The same command goes on.", highlight=False, soft_wrap=True
        )
        return 130
    return 0


def report(arguments: argparse.Namespace, console: Console, command: Sequence[str]) -> int:
    """Write a page again."""
    from unirl_env.bench.running import reported

    if not (arguments.folder / "results.jsonl").is_file():
        raise ConfigError(
            f"The folder of a bench must hold `results.jsonl`, got {arguments.folder}; try runs/bench/quick."
        )
    reported(arguments.folder, console)
    return 0


def verify(arguments: argparse.Namespace, console: Console, command: Sequence[str]) -> int:
    """Do the first iterations of a run again; 3 if the numbers are others."""
    from unirl_env.bench.verify import verify as verified

    found = verified(arguments.folder, arguments.iterations, console, arguments.trust)
    return 0 if found.sound else UNSOUND


def referee(arguments: argparse.Namespace, console: Console, command: Sequence[str]) -> int:
    """Hold losses against each other; 3 if one gave no answer."""
    from unirl_env.bench.referee import RefereeSettings
    from unirl_env.bench.referee import referee as held_against

    rows = held_against(read_settings(arguments.overrides, RefereeSettings), console)
    return UNSOUND if any(row["error"] for row in rows) else 0


def compare(arguments: argparse.Namespace, console: Console, command: Sequence[str]) -> int:
    """Set two benches side by side."""
    from unirl_env.bench.compare import CompareSettings
    from unirl_env.bench.compare import compare as side_by_side

    first, second = arguments.folders
    side_by_side(first, second, console, read_settings(arguments.overrides, CompareSettings))
    return 0


def plan(arguments: argparse.Namespace, console: Console, command: Sequence[str]) -> int:
    """Say what a wanted effect takes."""
    from unirl_env.bench.plan import PlanSettings
    from unirl_env.bench.plan import plan as planned

    planned(read_settings(arguments.overrides, PlanSettings), console)
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace, Console, Sequence[str]], int]] = {
    "run": run,
    "report": report,
    "compare": compare,
    "plan": plan,
    "verify": verify,
    "referee": referee,
}
