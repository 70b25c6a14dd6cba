"""What the embedded text-to-video model is trained on: captions, their clips, and loosened captions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from unirl_env.prompts.moving import DIRECTIONS, MovingCaption, draw, split_captions
from unirl_env.prompts.shapes import COLOURS, SHAPES

__all__ = ["draw_clips", "loosen", "sample_captions"]


def sample_captions(count: int, rng: np.random.Generator) -> list[MovingCaption]:
    """Draw training captions, never a held-out one."""
    trained = split_captions()[0]
    return [trained[index] for index in rng.integers(len(trained), size=count)]


def draw_clips(captions: Sequence[MovingCaption], rng: np.random.Generator) -> Tensor:
    """Clips `[N, 3, 9, 32, 32]` in [-1, 1], as a network reads them."""
    return draw(captions, rng).transpose(1, 2) * 2 - 1


def loosen(caption: MovingCaption, rate: float, rng: np.random.Generator) -> MovingCaption:
    """Replace each attribute at random with probability `rate`; the clip stays what it was.

    See `shapes_data.loosen` for what it is good for.
    """

    def swap(value: str, choices: Sequence[str]) -> str:
        return str(rng.choice(choices)) if rng.random() < rate else value

    return MovingCaption(
        colour=swap(caption.colour, list(COLOURS)),
        shape=swap(caption.shape, SHAPES),
        direction=swap(caption.direction, list(DIRECTIONS)),
    )
