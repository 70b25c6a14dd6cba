"""What a bench adds to the runs that it is made of, in one process and on the same work.

Bare is what `train` does in a warm process: settings composed, the run launched, evaluated and reported. The
bench does that by `played`, which also writes a log and the row, exact measures of checkpoints included, and
hands it out by Ray.

    python benchmarks/bench_overhead.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import io
import logging
import statistics
import tempfile
import time
from pathlib import Path

import ray
from rich.console import Console
from timing import report

from unirl_env.bench.cells import Cell
from unirl_env.bench.contestants import Contestant
from unirl_env.bench.player import played
from unirl_env.bench.suite import Task
from unirl_env.run.launch import launch

SHORT = ("logging.eval_samples=8", "logging.checkpoint_every=0", "logging.keep_last=1")
TASKS = (
    Task("line", "diffusion/line", score="exact", measure="unirl_env.bench.exact:line", settings=SHORT),
    Task(
        "tiny_sd3",
        "diffusion/tiny_sd3",
        reference=1.0,
        settings=("iterations=3", "logging.eval_prompts=4", "logging.eval_samples=2"),
    ),
)


class Nothing:
    """What is handed out costs as much as a cell, and does nothing."""

    def play(self, cell: Cell) -> dict[str, float]:
        """Nothing."""
        return {"score": 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    player = ray.remote(num_cpus=0)(Nothing).remote()
    with tempfile.TemporaryDirectory() as place:
        for task in TASKS:
            bare, bench, handing = [], [], []
            for number in range(args.rounds + 1):
                cell = Cell(Path(place) / "bare", task, Contestant("grpo", "grpo"), number)
                began = time.perf_counter()
                launch(cell.compose(), Console(file=io.StringIO()), cell.command)
                bare.append(time.perf_counter() - began)
                cell = Cell(Path(place) / "bench", task, Contestant("grpo", "grpo"), number)
                began = time.perf_counter()
                row = played(cell)
                bench.append(time.perf_counter() - began)
                assert row["status"] == "done", row["error"]
                began = time.perf_counter()
                ray.get(player.play.remote(cell))
                handing.append(time.perf_counter() - began)
            # The first of each imports what the others find.
            run, all_of_it, ray_call = (statistics.median(each[1:]) for each in (bare, bench, handing))
            report(
                "bench_overhead",
                {
                    "task": task.name,
                    "bare_s": round(run, 3),
                    "bench_s": round(all_of_it, 3),
                    "handing_out_s": round(ray_call, 4),
                    "overhead": round((all_of_it + ray_call) / run - 1, 4),
                },
            )


if __name__ == "__main__":
    main()
