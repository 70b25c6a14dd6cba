"""Does the picture show what the caption says? Rules and templates for the shapes world.

`ShapesScorer` reads the objects of a picture by rules and is meant to be trained on. `TemplateScorer`
compares the picture with ideal drawings of the caption and is meant to be held out: it shares neither a
threshold nor a feature with the rules, so a policy that only games the rules does not gain on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from unirl_env.prompts.shapes import (
    BACKGROUND,
    COLOURS,
    PLACES,
    RELATIONS,
    SHAPES,
    Caption,
    Scenes,
    render,
)
from unirl_env.rewards.captions import caption_of, require_caption
from unirl_env.rewards.inputs import picture_of
from unirl_env.types import Prompt, Sample, Scores

_SIDE = 32  # pictures of any size are read at this one, where the thresholds below are right
_ASPECTS = ("colour", "shape", "count", "position")
_NAMES = tuple(COLOURS)
_EXTENT = np.array([0.79, 0.99, 0.53])  # covered fraction of the bounding box: circle, square, triangle


def _read_pictures(samples: Sequence[Sample]) -> np.ndarray:
    """`[B, 3, 32, 32]` float32; NaN where a picture is not finite."""
    pictures = np.empty((len(samples), 3, _SIDE, _SIDE), dtype=np.float32)
    for i, sample in enumerate(samples):
        pictures[i] = read_picture(picture_of(sample, "shapes"))
    return pictures


def read_picture(image: Tensor) -> np.ndarray:
    """A picture `[3, H, W]` at the size at which blobs are found, `[3, 32, 32]` float32."""
    image = image.detach().to("cpu", torch.float32).clamp(0, 1)
    if image.shape[1:] != (_SIDE, _SIDE):
        image = nnf.interpolate(image[None], (_SIDE, _SIDE), mode="bilinear", antialias=True)[0]
    return image.numpy()


def _chroma(rgb: np.ndarray) -> np.ndarray:
    """Colour without its grey part, over the first axis of 3."""
    return rgb - rgb.mean(axis=0, keepdims=True)


_DIRECTIONS = _chroma(np.array(list(COLOURS.values())).T)
_DIRECTIONS = (_DIRECTIONS / np.linalg.norm(_DIRECTIONS, axis=0)).T  # [6, 3]


@dataclass(frozen=True)
class Blob:
    """One object read from a picture; its middle x, y, width and height are fractions of the side."""

    area: float
    x: float
    y: float
    width: float
    height: float
    angles: np.ndarray  # [6] degrees from each named colour
    extent: float
    aspect: float
    strength: float  # of its colour, from 0 for grey

    def colour(self, name: str) -> tuple[float, bool]:
        """How near its colour is to a named one, in [0, 1], and whether it is that one."""
        index = _NAMES.index(name)
        soft = np.clip((50.0 - self.angles[index]) / 35.0, 0.0, 1.0)
        return float(soft), int(self.angles.argmin()) == index and self.angles[index] < 40.0

    def shape(self, name: str) -> tuple[float, bool]:
        """How near its shape is to a named one, in [0, 1], and whether it is that one."""
        index = SHAPES.index(name)
        away = np.abs(self.extent - _EXTENT)
        regular = 0.7 < self.aspect < 1.43
        soft = np.clip((0.20 - away[index]) / 0.14, 0.0, 1.0) * (1.0 if regular else 0.5)
        return float(soft), int(away.argmin()) == index and regular


def find_blobs(picture: np.ndarray) -> list[Blob]:
    """The coloured objects of `picture`, largest first; `[3, 32, 32]`, or one side is longer."""
    from scipy import ndimage

    chroma = _chroma(picture)
    strength = np.linalg.norm(chroma, axis=0)
    labels, _ = ndimage.label(strength > 0.22)
    blobs = []
    for index, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        # One pixel more on each side takes the soft edge into the measures.
        rows = slice(max(rows.start - 1, 0), rows.stop + 1)
        columns = slice(max(columns.start - 1, 0), columns.stop + 1)
        own = labels[rows, columns]
        inside = own == index
        if inside.sum() < 10:
            continue
        seen = strength[rows, columns] * ((own == 0) | inside)
        full = np.percentile(seen[inside], 75)
        cover = np.clip(seen / full, 0.0, 1.0)
        cover[cover < 0.12] = 0.0
        area = cover.sum()
        width, height = cover.max(axis=0).sum(), cover.max(axis=1).sum()
        mean = (chroma[:, rows, columns] * (cover * inside)).sum(axis=(1, 2))
        cosines = _DIRECTIONS @ mean / max(float(np.linalg.norm(mean)), 1e-6)
        blobs.append(
            Blob(
                area=float(area),
                x=float((cover.max(axis=0) * (np.arange(cover.shape[1]) + columns.start + 0.5)).sum())
                / float(width * _SIDE),
                y=float((cover.max(axis=1) * (np.arange(cover.shape[0]) + rows.start + 0.5)).sum())
                / float(height * _SIDE),
                width=float(width) / _SIDE,
                height=float(height) / _SIDE,
                angles=np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0))),
                extent=float(area / (width * height)),
                aspect=float(width / height),
                strength=float(full),
            )
        )
    return sorted(blobs, key=lambda blob: -blob.area)


def _match(blobs: Sequence[Blob | None], things: Sequence[tuple[str, str]]) -> tuple[float, float, bool]:
    """(colour, shape, all right) of blobs against things, in the order given; a missing blob counts 0."""
    colour = shape = 0.0
    right = True
    for blob, (colour_name, shape_name) in zip(blobs, things, strict=True):
        if blob is None:
            right = False
            continue
        soft_colour, hard_colour = blob.colour(colour_name)
        soft_shape, hard_shape = blob.shape(shape_name)
        colour, shape = colour + soft_colour, shape + soft_shape
        right = right and hard_colour and hard_shape
    return colour / len(things), shape / len(things), right


def _judge_place(blob: Blob | None, place: str) -> tuple[float, bool]:
    if blob is None:
        return 0.0, False
    distances = {name: math.hypot(blob.x - x, blob.y - y) for name, (x, y) in PLACES.items()}
    soft = min(max((0.31 - distances[place]) / 0.21, 0.0), 1.0)
    return soft, min(distances, key=distances.__getitem__) == place


def _judge_relation(first: Blob | None, second: Blob | None, relation: str) -> tuple[float, bool]:
    if first is None or second is None:
        return 0.0, False
    away = np.array([first.x - second.x, first.y - second.y])
    along = float(away @ np.array(RELATIONS[relation]))
    across = float(np.abs(away[::-1] @ np.abs(RELATIONS[relation])))
    return min(max(along / 0.25, 0.0), 1.0), along > max(0.1, across)


def _judge(picture: np.ndarray, caption: Caption) -> tuple[dict[str, float], float]:
    """The aspects in [0, 1] (NaN: not asked for) and whether all of them hold."""
    found = find_blobs(picture)
    wanted = len(caption.things)
    blobs: list[Blob | None] = [*found[:wanted], *[None] * (wanted - len(found))]
    if caption.kind == "relation":
        # The caption does not say which of the two blobs is which: take the reading that fits best.
        blobs = max((blobs, blobs[::-1]), key=lambda order: sum(_match(order, caption.things)[:2]))
    colour, shape, right = _match(blobs, caption.things)
    count = 1.0 / (1 + abs(len(found) - wanted)) if found else 0.0
    position, in_place = math.nan, True
    if caption.kind == "place":
        position, in_place = _judge_place(blobs[0], caption.where)
    elif caption.kind == "relation":
        position, in_place = _judge_relation(blobs[0], blobs[1], caption.where)
    strict = float(right and in_place and len(found) == wanted)
    return {"colour": colour, "shape": shape, "count": count, "position": position}, strict


class ShapesScorer:
    """Rule-based reading of a picture against its caption; about a millisecond a picture.

    Objects are connected regions of colour; an object's colour is the direction of its chroma, its shape
    the covered fraction of its bounding box. `value` is the mean of

    * `partial`: the mean of the aspects that the caption asks for, each soft in [0, 1], and
    * `strict`: 1 where every aspect holds, else 0.

    The dense half gives a gradient where nothing is right yet, the strict half keeps the optimum sharp.
    The aspects are reported as parts, too; `position` is NaN for a caption that names none ("two red
    circles"). The caption is `metadata["caption"]` where a prompt has one, else its text. One outside the
    grammar of `unirl_env.prompts.shapes` and a picture that is not finite give an invalid score.
    """

    name = "shapes"
    needs = ("image",)
    pointwise = True
    asks = staticmethod(require_caption)

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score `samples[i].image` (`[3, H, W]` in [0, 1], any size) against the caption."""
        pictures = _read_pictures(samples)
        columns = {key: np.full(len(pictures), np.nan) for key in ("partial", "strict", *_ASPECTS)}
        for i, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
            caption = caption_of(prompt)
            if caption is None or not np.isfinite(picture).all():
                continue
            aspects, columns["strict"][i] = _judge(picture, caption)
            columns["partial"][i] = np.nanmean(list(aspects.values()))
            for key, value in aspects.items():
                columns[key][i] = value
        value = (columns["partial"] + columns["strict"]) / 2
        return Scores(torch.from_numpy(value), {k: torch.from_numpy(v) for k, v in columns.items()})


@lru_cache(maxsize=256)
def _templates(things: tuple[tuple[str, str], ...], kind: str, where: str) -> np.ndarray:
    """Ideal drawings of a caption over sizes, offsets and arrangements, `[K, 3 * 32 * 32]`, unit norm."""
    corners = list(PLACES.values())[:4]
    radii: tuple[float, ...]
    if kind == "place":
        arrangements, radii = [[PLACES[where]]], (0.17, 0.19, 0.21)
    elif kind == "count":
        from itertools import combinations

        arrangements, radii = [list(c) for c in combinations(corners, len(things))], (0.14, 0.16)
    else:
        dx, dy = RELATIONS[where]
        slides = (-0.16, 0.0, 0.16)
        arrangements = [
            [(0.5 + sign * 0.22 * dx + s * abs(dy), 0.5 + sign * 0.22 * dy + s * abs(dx)) for sign in (1, -1)]
            for s in slides
        ]
        radii = (0.15, 0.17)
    grid = [(x / _SIDE, y / _SIDE) for x in (-1.5, 0, 1.5) for y in (-1.5, 0, 1.5)]
    centres = [[(x + u, y + v) for x, y in spots] for spots in arrangements for _ in radii for u, v in grid]
    sizes = [r for _ in arrangements for r in radii for _ in grid]
    n, k = len(sizes), len(things)
    scenes = Scenes(
        rgb=torch.tensor([COLOURS[colour] for colour, _ in things]).expand(n, k, 3),
        shape=torch.tensor([SHAPES.index(shape) for _, shape in things]).expand(n, k),
        centre=torch.tensor(centres, dtype=torch.float32),
        radius=torch.tensor(sizes, dtype=torch.float32)[:, None].expand(n, k),
    )
    drawn = render(scenes, _SIDE).numpy() - np.array(BACKGROUND, dtype=np.float32)[:, None, None]
    flat = drawn.reshape(n, -1)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


class TemplateScorer:
    """How well the picture matches the best of many ideal drawings of its caption; for evaluation.

    `value` is the largest normalised correlation, clipped to [0, 1], between the picture and drawings of
    the caption over sizes, offsets and arrangements, after the background (the picture's own median
    colour) is taken away. Every pixel counts alike, nothing is segmented or classified: independent of
    `ShapesScorer`, hence the reward to hold out when that one is trained on. A perfect drawing scores
    about 0.9, one of the wrong colour or place mostly 0 to 0.4 (counts are told apart less well: about 0.5).
    Where the caption stands and what is invalid is as in `ShapesScorer`.
    """

    name = "shapes_template"
    needs = ("image",)
    pointwise = True
    asks = staticmethod(require_caption)

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score `samples[i].image` (`[3, H, W]` in [0, 1], any size) against the caption."""
        pictures = _read_pictures(samples)
        value = np.full(len(pictures), np.nan, dtype=np.float32)
        for i, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
            caption = caption_of(prompt)
            if caption is None or not np.isfinite(picture).all():
                continue
            seen = (picture - np.median(picture, axis=(1, 2), keepdims=True)).ravel()
            templates = _templates(caption.things, caption.kind, caption.where)
            best = (templates @ seen).max() / max(float(np.linalg.norm(seen)), 1e-3)
            value[i] = min(max(best, 0.0), 1.0)
        return Scores(torch.from_numpy(value))
