"""The shapes world: captions of coloured shapes and the pictures that they describe.

It is the common ground of the embedded text-to-image model, which learns to draw it, and of the rewards
that judge the drawings; the two know this file and not each other.

Grammar (every caption has one reading)::

    place     "a red circle at the top left"          6 colours x 3 shapes x 5 places
    count     "two green squares"                     6 colours x 3 shapes x {two, three}
    relation  "a red circle left of a blue square"    two objects of different colour x 4 relations

All lengths are fractions of the picture's side, so that a scene can be drawn at any size.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.92, 0.22, 0.22),
    "green": (0.20, 0.75, 0.30),
    "blue": (0.20, 0.38, 0.95),
    "yellow": (0.95, 0.82, 0.15),
    "purple": (0.78, 0.28, 0.92),
    "cyan": (0.12, 0.78, 0.88),
}
BACKGROUND: tuple[float, float, float] = (0.11, 0.12, 0.16)
SHAPES: tuple[str, ...] = ("circle", "square", "triangle")
PLACES: dict[str, tuple[float, float]] = {
    "top left": (0.28, 0.28),
    "top right": (0.72, 0.28),
    "bottom left": (0.28, 0.72),
    "bottom right": (0.72, 0.72),
    "center": (0.50, 0.50),
}
COUNTS: dict[str, int] = {"two": 2, "three": 3}
# The direction from the second object to the first; y points down.
RELATIONS: dict[str, tuple[int, int]] = {
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}

_COLOUR, _SHAPE = "|".join(COLOURS), "|".join(SHAPES)
_THING = rf"a ({_COLOUR}) ({_SHAPE})"
_PATTERNS = {
    "place": re.compile(rf"{_THING} at the ({'|'.join(PLACES)})"),
    "count": re.compile(rf"({'|'.join(COUNTS)}) ({_COLOUR}) ({_SHAPE})s"),
    "relation": re.compile(rf"{_THING} ({'|'.join(RELATIONS)}) {_THING}"),
}


@dataclass(frozen=True)
class Caption:
    """What a picture must show.

    Attributes:
        kind: "place", "count" or "relation".
        things: The objects as (colour, shape), each entry one object of the picture.
        where: The place or the relation; empty for a count.
    """

    kind: str
    things: tuple[tuple[str, str], ...]
    where: str = ""

    @property
    def text(self) -> str:
        """The caption in words; `parse_caption` reads it back."""
        (colour, shape), count = self.things[0], len(self.things)
        if self.kind == "place":
            return f"a {colour} {shape} at the {self.where}"
        if self.kind == "count":
            number = next(word for word, n in COUNTS.items() if n == count)
            return f"{number} {colour} {shape}s"
        other_colour, other_shape = self.things[1]
        return f"a {colour} {shape} {self.where} a {other_colour} {other_shape}"


def parse_caption(text: str) -> Caption | None:
    """Read a caption; None where the text is not one of the grammar."""
    text = " ".join(text.lower().replace(".", " ").split())
    if match := _PATTERNS["place"].fullmatch(text):
        colour, shape, place = match.groups()
        return Caption("place", ((colour, shape),), place)
    if match := _PATTERNS["count"].fullmatch(text):
        number, colour, shape = match.groups()
        return Caption("count", ((colour, shape),) * COUNTS[number])
    if match := _PATTERNS["relation"].fullmatch(text):
        colour, shape, relation, other_colour, other_shape = match.groups()
        return Caption("relation", ((colour, shape), (other_colour, other_shape)), relation)
    return None


def all_captions(kind: str) -> list[Caption]:
    """Every caption of a kind, in a fixed order."""
    things = list(itertools.product(COLOURS, SHAPES))
    if kind == "place":
        return [Caption(kind, (thing,), place) for thing in things for place in PLACES]
    if kind == "count":
        return [Caption(kind, (thing,) * count) for thing in things for count in COUNTS.values()]
    if kind == "relation":
        pairs = [(a, b) for a in things for b in things if a[0] != b[0]]
        return [Caption(kind, pair, relation) for pair in pairs for relation in RELATIONS]
    raise ValueError(f"`kind` must be one of {sorted(_PATTERNS)}, got {kind!r}.")


def split_captions(kind: str) -> tuple[list[Caption], list[Caption]]:
    """Split the captions of a kind into (train, held out).

    Each tenth caption in the order of a hash of its words is held out: a choice that favours no colour,
    shape or place, needs no random state, and stays as it is when this file is reordered.
    """
    ordered = sorted(all_captions(kind), key=lambda c: blake2b(c.text.encode(), digest_size=8).digest())
    held_out = set(ordered[::10])
    captions = all_captions(kind)
    return [c for c in captions if c not in held_out], [c for c in captions if c in held_out]


def words() -> list[str]:
    """Every word of the grammar, sorted."""
    texts = (c.text for kind in _PATTERNS for c in all_captions(kind))
    return sorted({word for text in texts for word in text.split()})


@dataclass(frozen=True)
class Scenes:
    """N pictures of up to K objects each; an object of radius 0 is absent.

    Attributes:
        rgb: `[N, K, 3]` colours in [0, 1].
        shape: `[N, K]` index into `SHAPES`.
        centre: `[N, K, 2]` x and y as fractions of the side.
        radius: `[N, K]` half the width of the object as a fraction of the side.
    """

    rgb: Tensor
    shape: Tensor
    centre: Tensor
    radius: Tensor


def render(scenes: Scenes, size: int = 32) -> Tensor:
    """Draw scenes with smooth edges.

    Args:
        scenes: N scenes.
        size: The side of the pictures in pixels.

    Returns:
        `[N, 3, size, size]` float32 in [0, 1].
    """
    axis = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    x = axis[None, None, None, :] - scenes.centre[..., 0, None, None]
    y = axis[None, None, :, None] - scenes.centre[..., 1, None, None]
    r = scenes.radius[..., None, None]
    # Signed distances to the outlines: negative inside.
    circle = torch.hypot(x, y) - r
    square = torch.maximum(x.abs(), y.abs()) - 0.88 * r
    side = (2 * x.abs() - y - r) / 5**0.5  # from the apex (0, -r) to the corners (+-r, r)
    triangle = torch.maximum(side, y - r)
    kind = scenes.shape[..., None, None]
    distance = torch.where(kind == 0, circle, torch.where(kind == 1, square, triangle))
    cover = (0.5 - distance * size).clamp(0, 1) * (r > 0)
    picture = torch.tensor(BACKGROUND)[:, None, None].expand(len(cover), 3, size, size)
    for k in range(cover.shape[1]):
        alpha = cover[:, k, None]
        picture = picture * (1 - alpha) + scenes.rgb[:, k, :, None, None] * alpha
    return picture.contiguous()


def lay_out(captions: Sequence[Caption], rng: np.random.Generator) -> Scenes:
    """Choose free places and sizes for what the captions leave open."""
    n, k = len(captions), 3
    rgb, shape = np.zeros((n, k, 3)), np.zeros((n, k), dtype=np.int64)
    centre, radius = np.zeros((n, k, 2)), np.zeros((n, k))
    for i, caption in enumerate(captions):
        count = len(caption.things)
        if caption.kind == "place":
            spots = np.array([PLACES[caption.where]])
            low, high = 0.17, 0.21
        elif caption.kind == "count":
            spots = np.array(list(PLACES.values())[:4])[rng.permutation(4)[:count]]
            low, high = 0.135, 0.165
        else:
            along = np.array(RELATIONS[caption.where]) * 0.22
            across = np.array(RELATIONS[caption.where])[::-1] * rng.uniform(-0.2, 0.2)
            spots = 0.5 + across + np.stack([along, -along])
            low, high = 0.145, 0.175
        centre[i, :count] = spots + rng.uniform(-0.03, 0.03, (count, 2))
        radius[i, :count] = rng.uniform(low, high, count)
        for j, (colour, name) in enumerate(caption.things):
            rgb[i, j], shape[i, j] = COLOURS[colour], SHAPES.index(name)
    as_float = (torch.from_numpy(a.astype(np.float32)) for a in (rgb, centre, radius))
    rgb_t, centre_t, radius_t = as_float
    return Scenes(rgb_t, torch.from_numpy(shape), centre_t, radius_t)


def draw(captions: Sequence[Caption], rng: np.random.Generator, size: int = 32) -> Tensor:
    """One picture per caption, `[N, 3, size, size]` in [0, 1]."""
    return render(lay_out(captions, rng), size)
