"""What clips weigh on the disk and on a page, and how long it takes to write them.

python benchmarks/clips.py [--size 480 832] [--frames 81]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from unirl_env.media.frames import write_png, write_webp
from unirl_env.run.report.shown import FILM, shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 832), help="height and width")
    parser.add_argument("--frames", type=int, default=81)
    args = parser.parse_args()
    Image.init()
    for count, height, width in ((9, 32, 32), (args.frames, *args.size)):
        frames = textured(count, height, width)
        with tempfile.TemporaryDirectory() as folder:
            clip, picture = Path(folder) / "clip.webp", Path(folder) / "picture.png"
            began = time.process_time()
            write_webp(clip, frames, fps=16)
            seconds = time.process_time() - began
            write_png(picture, frames, fps=16)
            kb = [size / 1e3 for size in (clip.stat().st_size, *map(len, weighed(clip, picture)))]
        print(f"{count} x {height} x {width}: {kb[0]:.0f} KB in {seconds:.3f} s of processor time")
        print(f"  on a page {kb[1]:.0f} KB, in a film {kb[2]:.0f}, a picture of this size {kb[3]:.0f}")


def weighed(clip: Path, picture: Path) -> tuple[str, str, str]:
    """What stands on a page: of a clip among the samples, of one in a film, of a picture."""
    return shown(clip), shown(clip, FILM), shown(picture)


def textured(count: int, height: int, width: int) -> list[np.ndarray]:
    """Frames of a texture of all scales that moves, with a little noise of its own in each."""
    rng = np.random.default_rng(0)
    tall, wide = height + count, width + 2 * count
    ground = np.full((tall, wide, 3), 21.0)
    for scale in (4, 8, 16, 32, 64, 128):
        coarse = rng.integers(0, 256, (tall // scale + 2, wide // scale + 2, 3), np.uint8)
        fine = np.asarray(Image.fromarray(coarse).resize((wide, tall), Image.Resampling.BICUBIC))
        ground += (fine - 127.5) * scale**0.5 * 0.27 + 17.5
    return [
        np.clip(
            ground[i : i + height, 2 * i : 2 * i + width] + rng.normal(0, 2, (height, width, 3)), 0, 255
        ).astype(np.uint8)
        for i in range(count)
    ]


if __name__ == "__main__":
    main()
