"""Every algorithm in every mode on the embedded models: a table, and a picture of small multiples.

Each cell is the ordinary command in a folder of its own, and is written down as soon as it is done:

    python benchmarks/algorithms_by_modes.py [--modes ar,pe] [--agents grpo] [--seeds 0,1,2] [--iterations 20]

Cells that are on record are not repeated, unless `--iterations` asks for another number; a run that was
killed goes on where it stopped. The interval of a gain is the 95 % t-interval over seeds, and over prompts
where there is one seed. `--iterations 0` only draws and prints what is on record.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from learning_curves import NAMES, band, named, rows, run, smoothed

from unirl_env.run.report.charts import colours

MODES = {
    "diffusion": ("diffusion/tiny_sd3", "pictures by denoising"),
    "ar": ("ar/tiny_qwen3", "texts"),
    "pe": ("pe/tiny_prompt_enhancer", "prompts for a frozen generator"),
    "unified_model": ("unified_model/tiny_unified", "texts and their pictures"),
}
SETS = {"train": "training prompts", "heldout": "held-out prompts"}
FOLDER = Path("runs/algorithms_by_modes")

Cell = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--agents", default=",".join(NAMES))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--iterations", type=int, help="of each run; by default the recipe's own number")
    parser.add_argument("--table", type=Path, default=Path("benchmarks/results/algorithms_by_modes.json"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images/algorithms_by_modes.png"))
    parser.add_argument("--extra", nargs="*", default=[], help="settings of all runs, key=value")
    args = parser.parse_args()
    chosen = product(args.seeds.split(","), args.modes.split(","), args.agents.split(","))
    failed = []
    for seed, mode, agent in chosen if args.iterations != 0 else ():
        key = f"{mode}/{agent}/{seed}"
        known = on_record(args.table).get(key)
        if known is None or args.iterations not in (None, known["iterations"]):
            try:
                cell = measure(mode, agent, int(seed), args.iterations, args.extra)
            except subprocess.CalledProcessError:
                failed.append(key)
                continue
            # Read again, because another process may have written down cells of its own.
            write(args.table, {**on_record(args.table), key: cell})
    cells = on_record(args.table)
    write(args.table, cells)
    print(markdown(cells))
    draw(cells, args.picture)
    if failed:
        raise SystemExit(
            f"These runs ended before they were done: {', '.join(failed)}; try the same command."
        )


def on_record(table: Path) -> dict[str, Cell]:
    """The cells that have been written down, by mode, agent and seed."""
    return json.loads(table.read_text())["cells"] if table.exists() else {}


def measure(mode: str, agent: str, seed: int, iterations: int | None, extra: Sequence[str]) -> Cell:
    """Train one cell, and what its folder says: before, after, the gain of every prompt, the curve."""
    length = [] if iterations is None else [f"iterations={iterations}"]
    # The folder tells short runs from long ones, so that none is taken for another.
    home = FOLDER / (mode if iterations is None else f"{mode}_{iterations}")
    folder = run(MODES[mode][0], home, agent, seed, [*length, *extra])
    training = rows(folder / "metrics.jsonl")
    sets = {}
    for name in SETS:
        measured = [row for row in rows(folder / "evaluation.jsonl") if row["set"] == name]
        if measured:
            before, after = (prompt_means(row) for row in (measured[0], measured[-1]))
            sets[name] = {
                "base": rounded(np.nanmean(before)),
                "trained": rounded(np.nanmean(after)),
                "gains": rounded(after - before),
            }
    return {
        "iterations": len(training),
        "seconds": rounded(sum(row["seconds"] for row in training)),
        "sets": sets,
        "curve": rounded(np.array([row["reward"] for row in training], float)),
    }


def prompt_means(row: Mapping[str, Any]) -> np.ndarray:
    """The mean reward of each prompt of an evaluation; NaN where all its scores failed."""
    values = np.array(row["values"]["reward"], float).reshape(-1, row["samples"])
    known = ~np.isnan(values)
    return np.where(known.any(1), np.nansum(values, 1) / np.maximum(known.sum(1), 1), np.nan)


def rounded(value: Any) -> Any:
    return np.round(np.asarray(value, float), 4).tolist()


def write(path: Path, cells: Mapping[str, Cell]) -> None:
    table = [summary(cells, mode, agent) for mode, agent in pairs(cells)]
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps({"table": table, "cells": cells}, indent=1) + "\n")
    draft.replace(path)


def pairs(cells: Mapping[str, Cell]) -> list[tuple[str, str]]:
    """Modes and agents on record, in the order of this page, those of others last."""
    return [(m, a) for m in MODES for a in agents_of(cells) if any(k.startswith(f"{m}/{a}/") for k in cells)]


def agents_of(cells: Mapping[str, Cell]) -> list[str]:
    """The agents on record."""
    known = dict.fromkeys(key.split("/")[1] for key in sorted(cells))
    return sorted(known, key=lambda agent: [*NAMES, *known].index(agent))


def seeds_of(cells: Mapping[str, Cell], mode: str, agent: str) -> list[Cell]:
    found = [cell for key, cell in sorted(cells.items()) if key.startswith(f"{mode}/{agent}/")]
    lengths = {cell["iterations"] for cell in found}
    if len(lengths) > 1:
        raise SystemExit(
            f"Runs of {agent} in mode {mode} must have one number of iterations to be averaged, got "
            f"{sorted(lengths)}; try `--iterations` for all of them."
        )
    return found


def gain(found: Sequence[Cell], name: str) -> tuple[float, float]:
    """Mean and half the 95 % t-interval: over seeds, or over the prompts of the only seed."""
    gains = [np.array(cell["sets"][name]["gains"], float) for cell in found]
    units = np.array([np.nanmean(g) for g in gains]) if len(gains) > 1 else gains[0][~np.isnan(gains[0])]
    mean, width = band(units[:, None])
    return float(mean[0]), float(width[0])


def summary(cells: Mapping[str, Cell], mode: str, agent: str) -> dict[str, Any]:
    """One line of the table."""
    found = seeds_of(cells, mode, agent)
    line: dict[str, Any] = {"mode": mode, "agent": agent, "seeds": len(found)}
    line["interval"] = "over seeds" if len(found) > 1 else "over prompts"
    line["iterations"] = found[0]["iterations"]
    line["seconds"] = rounded(np.mean([cell["seconds"] for cell in found]))
    for name in SETS:
        if all(name in cell["sets"] for cell in found):
            mean, width = gain(found, name)
            line[name] = {
                "base": rounded(np.mean([cell["sets"][name]["base"] for cell in found])),
                "trained": rounded(np.mean([cell["sets"][name]["trained"] for cell in found])),
                "gain": rounded(mean),
                "gain_95": rounded([mean - width, mean + width]),
            }
    return line


def markdown(cells: Mapping[str, Cell]) -> str:
    """The table for people."""
    head = ["mode", "algorithm", *SETS.values(), "95 % interval", "iterations", "seconds of training"]
    lines, title = [head, ["---"] * len(head)], named(agents_of(cells))
    for mode, agent in pairs(cells):
        line = summary(cells, mode, agent)
        numbers = []
        for name in SETS:
            part = line.get(name)
            width = part and (part["gain_95"][1] - part["gain_95"][0]) / 2
            numbers.append(
                f"{part['base']:.2f} → {part['trained']:.2f} ({part['gain']:+.2f} ± {width:.2f})"
                if part
                else "-"
            )
        over = line["interval"] + (f" ({line['seeds']})" if line["seeds"] > 1 else "")
        lines.append(
            [f"`{mode}`", title[agent], *numbers, over, line["iterations"], f"{line['seconds']:.0f}"]
        )
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def draw(cells: Mapping[str, Cell], picture: Path) -> None:
    """For each mode its training rewards above, and the gains on fixed prompts and seeds below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = pairs(cells)
    modes = list(dict.fromkeys(mode for mode, _ in found))
    if not modes:
        return
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    size = (0.8 + 2.9 * len(modes), 5.2)
    figure, axes = plt.subplots(
        2, len(modes), figsize=size, height_ratios=(1.5, 1), layout="constrained", squeeze=False
    )
    agents = agents_of(cells)
    looks = {agent: (colours(agents)[agent], title) for agent, title in named(agents).items()}
    for column, mode in enumerate(modes):
        above, below = axes[:, column]
        above.set_title(f"{mode}\n", fontsize=11)
        above.text(
            0.5, 1.03, MODES[mode][1], transform=above.transAxes, ha="center", fontsize=9, color="#666"
        )
        for place, agent in enumerate(agents):
            if (mode, agent) in found:
                _curve(above, seeds_of(cells, mode, agent), *looks[agent])
                _bars(below, seeds_of(cells, mode, agent), looks[agent][0], place, len(agents))
        above.set_xlabel("iteration")
        above.grid(alpha=0.2)
        below.set_xticks(range(len(SETS)), [name.replace(" ", "\n") for name in SETS.values()], fontsize=9)
        below.set_xlim(-0.5, len(SETS) - 0.5)
        below.axhline(0, color="#888", lw=0.8)
        below.grid(alpha=0.2, axis="y")
    limits = [axis.get_ylim() for axis in axes[1]]
    for axis in axes[1]:
        axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    axes[0, 0].set_ylabel("training reward")
    axes[1, 0].set_ylabel("gain over the base")
    lines = {line.get_label(): line for axis in axes[0] for line in axis.get_lines()}
    shown = [title for _, title in looks.values() if title in lines]
    handles = [lines[name] for name in shown]
    figure.legend(handles, shown, loc="outside upper center", ncols=len(shown), frameon=False)
    counts = {len(seeds_of(cells, mode, agent)) for mode, agent in found}
    over = "over prompts, one seed" if counts == {1} else f"over {max(counts)} seeds"
    if len(counts) > 1:
        over = "over seeds, or over prompts where there is one seed"
    figure.supxlabel(f"bars: fixed prompts and seeds, 95 % t-intervals {over}", fontsize=8, color="#666")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=130)


def _curve(axis: Any, found: Sequence[Cell], colour: str, title: str) -> None:
    curves = np.array([cell["curve"] for cell in found])
    mean, width = band(smoothed(curves))
    x = np.arange(1, len(mean) + 1)
    axis.plot(x, mean, color=colour, label=title, lw=2)
    axis.fill_between(x, mean - width, mean + width, color=colour, alpha=0.15, lw=0)


def _bars(axis: Any, found: Sequence[Cell], colour: str, place: int, count: int) -> None:
    room = 0.78 / count
    for slot, name in enumerate(SETS):
        if all(name in cell["sets"] for cell in found):
            mean, width = gain(found, name)
            x = slot + (place - (count - 1) / 2) * room
            axis.bar(x, mean, 0.92 * room, color=colour, yerr=width, error_kw={"lw": 1, "capsize": 2})


if __name__ == "__main__":
    main()
