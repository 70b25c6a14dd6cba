"""The moving world: captions of one coloured shape that moves, and the clips that they describe.

It is `shapes` with time: the same colours, shapes and background. The embedded text-to-video model learns to
draw it, and rewards judge the drawings; the two know this file and not each other.

Grammar (every caption has one reading)::

    "a red circle moves right"      6 colours x 3 shapes x 4 directions

All lengths are fractions of the clip's side, so that a clip can be drawn at any size.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unirl_env.prompts.shapes import COLOURS, SHAPES, Scenes, render

DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Of the motion, as (x, y); y points down."""
FRAMES = 9
"""Of a clip."""
RADIUS = (0.17, 0.20)
"""Half the width of a thing; 5.4 to 6.4 pixels at 32."""
SPEED = (1.5 / 32, 2.3 / 32)
"""Per frame; over a clip a thing moves 12 to 18 pixels at 32, and never leaves it."""

_PATTERN = re.compile(rf"a ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) moves ({'|'.join(DIRECTIONS)})")


@dataclass(frozen=True)
class MovingCaption:
    """What a clip must show.

    Attributes:
        colour: A key of `COLOURS`.
        shape: One of `SHAPES`.
        direction: A key of `DIRECTIONS`.
    """

    colour: str
    shape: str
    direction: str

    @property
    def text(self) -> str:
        """The caption in words; `parse` reads it back."""
        return f"a {self.colour} {self.shape} moves {self.direction}"


def parse(text: str) -> MovingCaption | None:
    """Read a caption; None where the text is not one of the grammar."""
    match = _PATTERN.fullmatch(" ".join(text.lower().replace(".", " ").split()))
    return MovingCaption(*match.groups()) if match else None


def all_captions() -> list[MovingCaption]:
    """Every caption, in a fixed order."""
    return [MovingCaption(*parts) for parts in itertools.product(COLOURS, SHAPES, DIRECTIONS)]


def split_captions() -> tuple[list[MovingCaption], list[MovingCaption]]:
    """Split the captions into 60 to train on and 12 that are held out.

    Of two attributes a trained model has seen every pair: each pair of a colour and a shape, a colour and a
    direction, or a shape and a direction is held out at most once. Each colour is held out twice, each
    direction three times, each shape four times.
    """

    def held_out(caption: MovingCaption) -> bool:
        colour = list(COLOURS).index(caption.colour)
        shape, direction = SHAPES.index(caption.shape), list(DIRECTIONS).index(caption.direction)
        return (colour + 2 * shape + direction) % len(COLOURS) == 0

    captions = all_captions()
    return [c for c in captions if not held_out(c)], [c for c in captions if held_out(c)]


def words() -> list[str]:
    """Every word of the grammar, sorted."""
    return sorted({word for caption in all_captions() for word in caption.text.split()})


def lay_out(captions: Sequence[MovingCaption], rng: np.random.Generator, frames: int = FRAMES) -> Scenes:
    """Choose where each thing starts, its size and its speed; scene `n * frames + f` is frame f of clip n.

    A thing starts anywhere from where its whole way lies inside the picture.
    """
    n = len(captions)
    radius, speed = rng.uniform(*RADIUS, n), rng.uniform(*SPEED, n)
    along = np.array([DIRECTIONS[caption.direction] for caption in captions], dtype=np.float64).reshape(n, 2)
    way = along * speed[:, None] * (FRAMES - 1)  # of 9 frames, however many are drawn
    low = radius[:, None] + np.maximum(0, -way)
    high = 1 - radius[:, None] - np.maximum(0, way)
    start = rng.uniform(low, high)
    time = np.linspace(0, 1, frames)[:, None] if frames > 1 else np.zeros((1, 1))
    centre = (start[:, None] + time * way[:, None]).reshape(n * frames, 1, 2)
    rgb = np.array([COLOURS[caption.colour] for caption in captions]).reshape(n, 1, 3)
    shape = np.array([SHAPES.index(caption.shape) for caption in captions], dtype=np.int64).reshape(n, 1)

    def of_each_frame(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.repeat(values, frames, axis=0))

    return Scenes(
        rgb=of_each_frame(rgb).float(),
        shape=of_each_frame(shape),
        centre=torch.from_numpy(centre).float(),
        radius=of_each_frame(radius[:, None]).float(),
    )


def draw(
    captions: Sequence[MovingCaption], rng: np.random.Generator, size: int = 32, frames: int = FRAMES
) -> Tensor:
    """One clip per caption, `[N, frames, 3, size, size]` in [0, 1].

    A thing goes the same way in any number of frames.
    """
    pictures = render(lay_out(captions, rng, frames), size)
    return pictures.reshape(len(captions), frames, 3, size, size)
