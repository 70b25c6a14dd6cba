"""What the embedded unified model is trained on: requests in many words, plans in few, pictures to change.

A request says a caption of the shapes world (kind "place") with synonyms; its plan says the same in the
words of `unirl_env.prompts.shapes`::

    "an azure disc in the upper left"                 -> "blue circle top left"
    a picture of a red circle, "make it azure"        -> "blue circle top left"

What `split_captions` holds out is never wanted, planned, drawn or changed in training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from pretraining.vqa_data import picture_uri
from unirl_env.prompts.shapes import COLOURS, PLACES, SHAPES, Caption, draw, split_captions

__all__ = ["Request", "captions", "mistaken", "plan_of", "said", "sample_edit", "vocabulary", "write_prompts"]

WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson", "scarlet"),
    "green": ("green", "emerald", "lime"),
    "blue": ("blue", "azure", "navy"),
    "yellow": ("yellow", "golden", "amber"),
    "purple": ("purple", "violet", "lilac"),
    "cyan": ("cyan", "turquoise", "aqua"),
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "wedge", "pyramid"),
    "top left": ("at the top left", "in the upper left", "in the top left corner"),
    "top right": ("at the top right", "in the upper right", "in the top right corner"),
    "bottom left": ("at the bottom left", "in the lower left", "in the bottom left corner"),
    "bottom right": ("at the bottom right", "in the lower right", "in the bottom right corner"),
    "center": ("at the center", "in the middle", "in the centre"),
}
CHANGES: dict[str, tuple[str, ...]] = {
    "colour": ("make it {}", "paint it {}", "it should be {}"),
    "shape": ("make it a {}", "turn it into a {}", "it should be a {}"),
    "place": ("put it {}", "move it so that it is {}", "it should be {}"),
}


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        text: In words.
        wanted: What the picture must show.
        source: What the picture shows that the request brings; None without one.
    """

    text: str
    wanted: Caption
    source: Caption | None = None


@lru_cache
def captions(held_out: bool = False) -> tuple[Caption, ...]:
    """The captions of one side of the split."""
    return tuple(split_captions("place")[held_out])


def _parts(caption: Caption) -> tuple[str, str, str]:
    ((colour, shape),) = caption.things
    return colour, shape, caption.where


def _caption(colour: str, shape: str, place: str) -> Caption:
    return Caption("place", ((colour, shape),), place)


def plan_of(caption: Caption) -> str:
    """The plan of a picture: colour, shape and place in the words of the shapes world."""
    return " ".join(_parts(caption))


def said(caption: Caption, rng: np.random.Generator) -> Request:
    """A caption in one of its 27 wordings."""
    colour, shape, place = (str(rng.choice(WORDS[part])) for part in _parts(caption))
    article = "an" if colour[0] in "aeiou" else "a"
    return Request(f"{article} {colour} {shape} {place}", caption)


def mistaken(caption: Caption, rng: np.random.Generator) -> Caption:
    """The caption with one part replaced by another; never one that is held out."""
    choices = (tuple(COLOURS), SHAPES, tuple(PLACES))
    while True:
        parts, which = list(_parts(caption)), rng.integers(3)
        parts[which] = str(rng.choice([word for word in choices[which] if word != parts[which]]))
        if (other := _caption(*parts)) not in captions(held_out=True):
            return other


def sample_edit(wanted: Caption, rng: np.random.Generator) -> Request:
    """A request to change one part of a picture, after which it shows `wanted`."""
    source = mistaken(wanted, rng)
    ((kind, word),) = (
        (kind, new)
        for kind, old, new in zip(CHANGES, _parts(source), _parts(wanted), strict=True)
        if old != new
    )
    return Request(str(rng.choice(CHANGES[kind])).format(rng.choice(WORDS[word])), wanted, source)


def vocabulary() -> list[str]:
    """Texts that hold every word of requests and plans as it stands there."""
    ways = [*WORDS.values(), *CHANGES.values()]
    texts = [f" {way}" for options in ways for way in options] + [way for options in ways for way in options]
    return [text.replace("{}", "") for text in texts] + [f"{word} a an" for word in WORDS] + list(WORDS)


def _rows(held_out: bool, each: int, rng: np.random.Generator) -> list[Request]:
    """`each` different wordings of every caption."""
    rows: dict[str, Request] = {}
    for caption in captions(held_out):
        before = len(rows)
        while len(rows) < before + each:
            request = said(caption, rng)
            rows.setdefault(request.text, request)
    return list(rows.values())


def _edits(held_out: bool, count: int, rng: np.random.Generator) -> list[Request]:
    wanted = captions(held_out)
    return [sample_edit(wanted[i % len(wanted)], rng) for i in range(count)]


def _entry(name: str, number: int, request: Request, rng: np.random.Generator) -> dict[str, str]:
    row = {"id": f"{name}-{number:03d}", "prompt": request.text, "caption": request.wanted.text}
    if request.source is not None:
        picture = (draw([request.source], rng)[0] * 255).round().to(torch.uint8)
        row |= {"source": request.source.text, "image": picture_uri(picture)}
    return row


def write_prompts(directory: str | Path, *, seed: int = 0) -> None:
    """Write `unified_{train,heldout}.jsonl` and `unified_edits_{train,heldout}.jsonl`.

    `caption` says what the picture must show, in the words that rewards read.
    """
    rng = np.random.default_rng([seed, 2])  # not a stream that a model was trained on
    sets: dict[str, Sequence[Request]] = {
        "unified_train": _rows(False, 3, rng),
        "unified_heldout": _rows(True, 6, rng),
        "unified_edits_train": _edits(False, 162, rng),
        "unified_edits_heldout": _edits(True, 45, rng),
    }
    for name, requests in sets.items():
        entries = [_entry(name.replace("_", "-"), i, request, rng) for i, request in enumerate(requests)]
        path = Path(directory) / f"{name}.jsonl"
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
