"""Look at questions: `python -m pretraining.vqa_sheet --prompts FILE.jsonl --out sheet.png`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unirl_env.media.pixels import load_picture

__all__ = ["draw_sheet"]


def draw_sheet(rows: Sequence[Mapping[str, Any]], path: str | Path, *, columns: int = 6) -> None:
    """Draw pictures with their questions and answers beneath.

    Args:
        rows: Each with `prompt`, `answer` and `image` as in the prompt files, and `said` where a model has
            answered: green if it was right, else red.
        path: The picture to write; its suffix is the format.
        columns: Pictures in a row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.6 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    for axes in (grid := figure.subplots(lines, columns, squeeze=False)).flat:
        axes.set_axis_off()
    for axes, row in zip(grid.flat, rows, strict=False):
        axes.imshow(load_picture(row["image"]).permute(1, 2, 0).numpy(), interpolation="nearest")
        said = row.get("said")
        words = row["answer"] if said is None else f"{row['answer']} — {said}"
        colour = "black" if said is None else "green" if said == row["answer"] else "red"
        axes.set_title(f"{row['prompt']}\n{words}", fontsize=8, color=colour)
    figure.savefig(path, dpi=100)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draw a sheet of questions about pictures.")
    parser.add_argument("--prompts", required=True, help="a .jsonl file of prompts with pictures")
    parser.add_argument("--out", required=True, help="the picture to write")
    parser.add_argument("--count", type=int, default=24)
    options = parser.parse_args(arguments)
    lines = Path(options.prompts).read_text(encoding="utf-8").splitlines()
    draw_sheet([json.loads(line) for line in lines[: options.count]], options.out)


if __name__ == "__main__":
    main()
