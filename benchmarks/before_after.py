"""The README's pictures: the same prompts and initial noise before and after training, from a run's folder.

What was written for a picture stands under it; of a clip, three frames stand side by side.

python benchmarks/before_after.py runs/tiny_sd3 [--prompts 6] [--picture docs/images/before_after.png]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from unirl_env.media.frames import evenly
from unirl_env.run.record.samples import drawn_paths, load_texts


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
    folders = {i: args.run / "pictures" / f"{i:06d}" / "train" for i in (0, last)}
    drawn = {i: drawn_paths(folder) for i, folder in folders.items()}
    tall, wide, _ = pixels(drawn[0][0, 0]).shape
    shown = min(samples, max(3, round(samples * tall / wide)))
    texts = {i: load_texts(folder) for i, folder in folders.items()}
    height = 1.25 if texts[0] else 0.95
    figure = plt.figure(figsize=(11, height * args.prompts + 0.3), layout="constrained")
    blocks = figure.subfigures((args.prompts + 1) // 2, 2, wspace=0.03)
    for number, block in enumerate(blocks.flat):
        block.suptitle(before["prompts"][number], fontsize=10)
        axes = block.subplots(2, shown)
        for line, (name, iteration, row) in enumerate((("before", 0, before), ("after", last, after))):
            for k in range(shown):
                axis = axes[line, k]
                axis.imshow(pixels(drawn[iteration][number, k]), interpolation="nearest")
                if texts[iteration]:
                    axis.set_xlabel(texts[iteration][number, k]["text"].replace(" ", "\n", 1), fontsize=6)
                axis.set(xticks=[], yticks=[])
                axis.set_title(f"{row['values']['reward'][number * samples + k]:.2f}", fontsize=7, pad=2)
            axes[line, 0].set_ylabel(name, fontsize=9)
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.picture, dpi=110)


def pixels(path: Path) -> np.ndarray:
    """`[H, W, 3]` of a picture, or of three frames of a clip, evenly spread."""
    with Image.open(path) as file:
        frames = []
        for i in evenly(range(getattr(file, "n_frames", 1)), 3):
            file.seek(i)
            frames.append(np.asarray(file.convert("RGB")))
    white = np.full_like(frames[0][:, : max(1, file.width // 16)], 255)
    return np.concatenate([part for frame in frames for part in (white, frame)][1:], axis=1)


if __name__ == "__main__":
    main()
