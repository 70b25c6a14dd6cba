"""What the embedded vision-language model is trained on: questions about pictures of several shapes.

A picture holds one to four objects, each in a quadrant of its own. Five kinds of questions::

    count   "how many red circles?"  "how many circles?"  "how many red things?"    "0" ... "4"
    colour  "what colour is the circle?"                                            "red"
    shape   "what shape is the red thing?"                                          "circle"
    where   "where is the red circle?"                                              "top left"
    what    "what is at the top left?"                                              "red circle"

Every question has one right answer. The combinations of `HELD_OUT` are never drawn or named in training.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unirl_env.prompts.shapes import COLOURS, PLACES, SHAPES, Scenes, render

__all__ = [
    "HELD_OUT",
    "KINDS",
    "SIDE",
    "Question",
    "ask",
    "draw_things",
    "loose_answer",
    "picture_uri",
    "sample_things",
    "vocabulary",
    "write_prompts",
]

SIDE = 32
KINDS = ("count", "colour", "shape", "where", "what")
QUADRANTS = tuple(place for place in PLACES if place != "center")
COMBINATIONS = tuple(itertools.product(COLOURS, SHAPES))
HELD_OUT = (("red", "triangle"), ("blue", "circle"), ("yellow", "square"))
"""One combination of each shape; each colour and each shape also occurs in others."""
ANSWERS: dict[str, tuple[str, ...]] = {
    "count": tuple("01234"),
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "where": QUADRANTS,
    "what": tuple(f"{colour} {shape}" for colour, shape in COMBINATIONS if (colour, shape) not in HELD_OUT),
}

Thing = tuple[str, str, str]
"""Colour, shape, quadrant."""


@dataclass(frozen=True)
class Question:
    """A question about one picture, with its answer."""

    kind: str
    text: str
    answer: str


def sample_things(rng: np.random.Generator, *, fewest: int = 1, held_out: bool = False) -> tuple[Thing, ...]:
    """The objects of one picture; with `held_out`, the first is of a combination of `HELD_OUT`."""
    trained = [pair for pair in COMBINATIONS if pair not in HELD_OUT]
    pairs: list[tuple[str, str]] = []
    for _ in range(rng.integers(fewest, 5)):
        # Without repetitions nearly all counts would be 0 and 1.
        if pairs and rng.random() < 0.45:
            pairs.append(pairs[rng.integers(len(pairs))])
        else:
            pairs.append(trained[rng.integers(len(trained))])
    if held_out:
        replaced, pair = pairs[0], HELD_OUT[rng.integers(len(HELD_OUT))]
        pairs = [pair if other == replaced else other for other in pairs]
    places = rng.permutation(4)[: len(pairs)]
    return tuple((*pair, QUADRANTS[place]) for pair, place in zip(pairs, places, strict=True))


def draw_things(scenes: Sequence[Sequence[Thing]], rng: np.random.Generator) -> Tensor:
    """Pictures `[N, 3, 32, 32]` uint8 of the objects, each a little off its quadrant's centre."""
    n, k = len(scenes), 4
    rgb, shape = torch.zeros(n, k, 3), torch.zeros(n, k, dtype=torch.int64)
    centre, radius = torch.zeros(n, k, 2), torch.zeros(n, k)
    for i, things in enumerate(scenes):
        for j, (colour, name, place) in enumerate(things):
            rgb[i, j], shape[i, j] = torch.tensor(COLOURS[colour]), SHAPES.index(name)
            centre[i, j] = torch.tensor(PLACES[place]) + torch.from_numpy(rng.uniform(-0.03, 0.03, 2))
            radius[i, j] = rng.uniform(0.17, 0.20)
    pictures = render(Scenes(rgb, shape, centre, radius), SIDE)
    return (pictures * 255).round().to(torch.uint8)


def ask(
    things: Sequence[Thing], kind: str, rng: np.random.Generator, *, about: Thing | None = None
) -> Question | None:
    """A question of a kind that has one answer for this picture, or None where there is none.

    Args:
        things: The objects of the picture.
        kind: One of `KINDS`.
        rng: Chooses what is left open.
        about: The object in question; None chooses one, for a count at times an absent one.
    """
    colour, shape, place = about or things[rng.integers(len(things))]
    if kind == "count":
        return _count(things, (colour, shape), rng, absent=0.0 if about else 0.3)
    if kind == "what":
        return Question(kind, f"what is at the {place}?", f"{colour} {shape}")
    if kind == "colour":
        alone = sum(other == shape for _, other, _ in things) == 1
        return Question(kind, f"what colour is the {shape}?", colour) if alone else None
    if kind == "shape":
        alone = sum(other == colour for other, _, _ in things) == 1
        return Question(kind, f"what shape is the {colour} thing?", shape) if alone else None
    if kind == "where":
        alone = sum(other[:2] == (colour, shape) for other in things) == 1
        return Question(kind, f"where is the {colour} {shape}?", place) if alone else None
    raise ValueError(f"`kind` must be one of {KINDS}, got {kind!r}.")


def _count(
    things: Sequence[Thing], pair: tuple[str, str], rng: np.random.Generator, absent: float
) -> Question:
    if rng.random() < absent:  # what may well not be there
        trained = [other for other in COMBINATIONS if other not in HELD_OUT]
        pair = trained[rng.integers(len(trained))]
    (colour, shape), how = pair, rng.integers(3)
    if how == 0:
        said, number = f"{colour} {shape}s", sum(other[:2] == pair for other in things)
    elif how == 1:
        said, number = f"{shape}s", sum(other == shape for _, other, _ in things)
    else:
        said, number = f"{colour} things", sum(other == colour for other, _, _ in things)
    return Question("count", f"how many {said}?", str(number))


def loose_answer(question: Question, rate: float, rng: np.random.Generator) -> str:
    """The answer; with probability `rate`, any answer of its kind instead.

    A model trained on such answers knows the right one and often says another: a preference left to
    sharpen, which is what reinforcement learning does fast.
    """
    if rng.random() < rate:
        choices = ANSWERS[question.kind]
        return choices[rng.integers(len(choices))]
    return question.answer


def vocabulary() -> list[str]:
    """Texts that hold every word of the questions and answers as it stands there."""
    words = [
        f"{said} {colour} {shape} {shape}s" for colour, shape in COMBINATIONS for said in ("the", "many")
    ]
    words += [f"where is the {colour} thing?" for colour in COLOURS]
    words += ["how many things?", "what colour is at the", "what shape is it?", "top left", "top right"]
    return [*words, "bottom left", "bottom right", " top", " bottom", "user", "assistant", "system"] + [
        answer for answers in ANSWERS.values() for answer in answers
    ]


def picture_uri(picture: Tensor) -> str:
    """A picture `[3, H, W]` uint8 as a `data:` URI of a PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _questions(count: int, rng: np.random.Generator, *, held_out: bool) -> list[tuple[Question, str]]:
    """Questions of all kinds in turn, each about a picture of its own with several objects."""
    rows: list[tuple[Question, str]] = []
    while len(rows) < count:
        things = sample_things(rng, fewest=2, held_out=held_out)
        kind, about = KINDS[len(rows) % len(KINDS)], things[0] if held_out else None
        question = ask(things, kind, rng, about=about)
        if question is not None:
            rows.append((question, picture_uri(draw_things([things], rng)[0])))
    return rows


def write_prompts(directory: str | Path, *, seed: int = 0, train: int = 400, held_out: int = 100) -> None:
    """Write `shapes_vqa_train.jsonl` and `shapes_vqa_heldout.jsonl`.

    Half of the held-out questions are about an object of `HELD_OUT`; the others about new pictures only.
    """
    rng = np.random.default_rng([seed, 1])  # not the stream that the model was trained on
    rows = {
        "train": _questions(train, rng, held_out=False),
        "heldout": _questions(held_out // 2, rng, held_out=False)
        + _questions(held_out - held_out // 2, rng, held_out=True),
    }
    for name, questions in rows.items():
        lines = [
            {"id": f"vqa-{name}-{i:03d}", "prompt": q.text, "answer": q.answer, "kind": q.kind, "image": uri}
            for i, (q, uri) in enumerate(questions)
        ]
        path = Path(directory) / f"shapes_vqa_{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
