"""The README's pictures: the same prompts and initial noise before and after training, from a run's folder.

python benchmarks/before_after.py runs/tiny_sd3 [--prompts 6] [--picture docs/images/before_after.png]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--picture", type=Path, default=Path("docs/images/before_after.png"))
    args = parser.parse_args()
    lines = (args.run / "evaluation.jsonl").read_text().splitlines()
    rows = {(row["iteration"], row["set"]): row for row in map(json.loads, lines)}
    last = max(iteration for iteration, _ in rows)
    before, after = rows[0, "train"], rows[last, "train"]
    draw(args, last, before, after)


def draw(args: argparse.Namespace, last: int, before: dict, after: dict) -> None:
    """One block per prompt, its first samples side by side; the prompts are the first ones, not picked."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    samples = before["samples"]
    figure = plt.figure(figsize=(11, 0.95 * args.prompts + 0.3), layout="constrained")
    blocks = figure.subfigures((args.prompts + 1) // 2, 2, wspace=0.03)
    for number, block in enumerate(blocks.flat):
        block.suptitle(before["prompts"][number], fontsize=10)
        axes = block.subplots(2, samples)
        for line, (name, iteration, row) in enumerate((("before", 0, before), ("after", last, after))):
            for k in range(samples):
                picture = args.run / "pictures" / f"{iteration:06d}" / "train" / f"{number:03d}-{k}.png"
                axis = axes[line, k]
                axis.imshow(plt.imread(picture), interpolation="nearest")
                axis.set(xticks=[], yticks=[])
                axis.set_title(f"{row['values']['reward'][number * samples + k]:.2f}", fontsize=7, pad=2)
            axes[line, 0].set_ylabel(name, fontsize=9)
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.picture, dpi=110)


if __name__ == "__main__":
    main()
