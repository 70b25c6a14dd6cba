"""Agents on latents beside each other: where they end, how far they drift, what it costs to get somewhere.

    python -m unirl_env.bench suite=tiny tasks=[tiny_sd3] agents=[nft,flow_dppo] seeds=10 name=pair
        baselines=false settings=[iterations=60,logging.eval_every=5,logging.eval_drift=true]
    python benchmarks/flow_agents.py runs/bench/pair [runs/bench/more ...] [--to flow_dppo] [--output file]

Cost is counted in rows of the network: those that were forwarded to sample and to score, and three times
those that were trained. That of getting there is the median over seeds, of the first evaluation whose
held-out reward is at least the mean end of the agent `--to`, as a share of that agent's whole run.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from statistics import mean, median
from typing import Any

from unirl_env.statistics import mean_interval

COLUMNS = (
    "agent",
    "seeds",
    "held-out prompts",
    "training prompts",
    "KL to the base, nats",
    "velocities",
    "rows sampled",
    "rows trained",
    "cost there",
    "got there",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benches", type=Path, nargs="+")
    parser.add_argument("--to", default="flow_dppo", help="whose end is the aim")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {}
    for bench in args.benches:
        for line in (bench / "results.jsonl").read_text().splitlines():
            row = json.loads(line)
            runs.setdefault(row["agent"], []).append(row)
    text = table(runs, args.to)
    print(text)
    if args.output:
        args.output.write_text(text)


def table(runs: dict[str, list[dict[str, Any]]], to: str) -> str:
    """The table, and the paired differences to the aim, in Markdown."""
    aim = mean(row["score"] for row in runs[to])
    whole = mean(cost(row) for row in runs[to])
    lines = [f"| {' | '.join(COLUMNS)} |", "| --- " + "| ---: " * (len(COLUMNS) - 1) + "|"]
    for agent, rows in sorted(runs.items(), key=lambda each: -mean(row["score"] for row in each[1])):
        there = [reached(row, aim) / whole for row in rows]
        cells = [
            agent,
            str(len(rows)),
            interval([row["score"] for row in rows]),
            interval(metric(rows, "train/reward")),
            interval(metric(rows, "drift/kl"), 1),
            interval(metric(rows, "drift/velocity_norm")),
            f"{mean(metric(rows, 'function_evaluations')):,.0f}",
            f"{mean(metric(rows, 'trained_rows')):,.0f}",
            "not reached" if math.isinf(median(there)) else f"{median(there):.2f}",
            f"{sum(map(math.isfinite, there))} of {len(rows)}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Paired by seed, less `{to}` on held-out prompts:", ""]
    base = {row["seed"]: row["score"] for row in runs[to]}
    for agent, rows in runs.items():
        common = [row for row in rows if row["seed"] in base]
        if agent != to and len(common) > 1:
            apart = [row["score"] - base[row["seed"]] for row in common]
            lines.append(f"- {agent}: {interval(apart)} ({len(apart)} seeds)")
    return "\n".join(lines) + "\n"


def cost(row: dict[str, Any]) -> float:
    """Rows of the network that a run took, a trained one counted three times."""
    found = row["metrics"]
    return found["function_evaluations"] + 3 * found["trained_rows"] + found.get("scored_rows", 0.0)


def reached(row: dict[str, Any], aim: float) -> float:
    """The cost until the first evaluation at or above the aim; infinite where there is none."""
    curve = row["curve"]
    there = [i for i, s in zip(curve["iteration"], curve["score"], strict=True) if s is not None and s >= aim]
    return cost(row) * min(there) / curve["iteration"][-1] if there else math.inf


def metric(rows: list[dict[str, Any]], name: str) -> list[float]:
    """A metric of each run."""
    return [row["metrics"][name] for row in rows]


def interval(values: list[float], digits: int = 3) -> str:
    """A mean with its 95 % interval over seeds."""
    found = mean_interval(values)
    return f"{found.estimate:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


if __name__ == "__main__":
    main()
