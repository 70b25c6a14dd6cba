"""What the embedded text-to-image model is trained on: captions, their pictures, and loosened captions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from unirl_env.prompts.shapes import COLOURS, COUNTS, PLACES, RELATIONS, SHAPES, Caption, draw, split_captions

__all__ = ["MIXTURE", "draw_in_parts", "loosen", "sample_captions"]

# The share of each kind in training; relations are the harder tier and only have to be known.
MIXTURE: dict[str, float] = {"place": 0.60, "count": 0.25, "relation": 0.15}


def sample_captions(count: int, rng: np.random.Generator) -> list[Caption]:
    """Draw training captions (never a held-out one) by `MIXTURE`."""
    trained = {kind: split_captions(kind)[0] for kind in MIXTURE}
    kinds = rng.choice(list(MIXTURE), size=count, p=list(MIXTURE.values()))
    return [trained[kind][rng.integers(len(trained[kind]))] for kind in kinds]


def draw_in_parts(captions: list[Caption], rng: np.random.Generator, part: int = 512) -> Tensor:
    """Pictures `[N, 3, 32, 32]` in [0, 1], drawn a part at a time to keep memory small."""
    return torch.cat([draw(captions[i : i + part], rng) for i in range(0, len(captions), part)])


def loosen(caption: Caption, rate: float, rng: np.random.Generator) -> Caption:
    """Replace each attribute at random with probability `rate`; the picture stays what it was.

    A model trained on loosened captions draws everything well and follows prompts only mostly: its
    distribution keeps a component that ignores each attribute. That is a preference left to sharpen,
    which is what reinforcement learning does fast; a missing ability is not.
    """

    def swap(value: str, choices: list[str]) -> str:
        return str(rng.choice(choices)) if rng.random() < rate else value

    colours, shapes = list(COLOURS), list(SHAPES)
    if caption.kind == "place":
        ((colour, shape),) = caption.things
        thing = (swap(colour, colours), swap(shape, shapes))
        return Caption("place", (thing,), swap(caption.where, list(PLACES)))
    if caption.kind == "count":
        colour, shape = caption.things[0]
        count = int(rng.choice(list(COUNTS.values()))) if rng.random() < rate else len(caption.things)
        return Caption("count", ((swap(colour, colours), swap(shape, shapes)),) * count)
    things = [(swap(colour, colours), swap(shape, shapes)) for colour, shape in caption.things]
    if things[0][0] == things[1][0]:  # not in the grammar
        things = list(caption.things)
    return Caption("relation", tuple(things), swap(caption.where, list(RELATIONS)))
