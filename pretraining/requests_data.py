"""Requests in free words and the captions that they mean, for the embedded prompt enhancer.

"draw something crimson and round in the upper left corner, please" means "a red circle at the top left". The
generator was trained on the captions alone: it knows neither the other words nor the forms of a request.

Captions are split as for the generator itself (`unirl_env.prompts.shapes.split_captions`): no request of the
held-out set means a caption that any request of training means.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from pretraining.shapes_data import loosen
from unirl_env.prompts.shapes import Caption, split_captions, words

__all__ = ["FORMS", "Request", "loose_rewrite", "requests_of", "vocabulary", "write_prompts"]

Request = tuple[str, Caption]
"""What a user says, and what it means."""

COLOUR_WORDS = {
    "red": ("red", "crimson", "scarlet", "ruby"),
    "green": ("green", "emerald", "lime", "grassy"),
    "blue": ("blue", "navy", "cobalt", "sapphire"),
    "yellow": ("yellow", "golden", "lemon", "amber"),
    "purple": ("purple", "violet", "plum", "lilac"),
    "cyan": ("cyan", "turquoise", "teal", "aqua"),
}
NOUNS = {
    "circle": ("circle", "disc", "ball", "dot"),
    "square": ("square", "box", "block", "tile"),
    "triangle": ("triangle", "wedge", "pyramid", "arrowhead"),
}
LOOKS = {
    "circle": ("round", "circular"),
    "square": ("square", "boxy"),
    "triangle": ("triangular", "pointed"),
}
PLACE_WORDS = {
    "top left": ("at the top left", "in the upper left corner", "high up on the left"),
    "top right": ("at the top right", "in the upper right corner", "high up on the right"),
    "bottom left": ("at the bottom left", "in the lower left corner", "down on the left"),
    "bottom right": ("at the bottom right", "in the lower right corner", "down on the right"),
    "center": ("at the center", "in the middle", "right in the centre"),
}
NOUN_FORMS = (
    "draw {colour} {noun} {place}",
    "please paint {colour} {noun} {place}",
    "could you show me {colour} {noun} {place}?",
    "{place} i would like {colour} {noun}",
    "i want to see {noun} {place}, in {bare}",
    "put {noun} {place} and make it {bare}",
)
LOOK_FORMS = (
    "draw something {bare} and {look} {place}, please",
    "something {look} {place}, please, and {bare}",
)
FORMS = (*NOUN_FORMS, *LOOK_FORMS)
"""How a request is said; `{colour}` and `{noun}` bring an article where they come first."""
UNKNOWN_RATE = 0.15
"""How often a loose rewrite keeps the words of a request, which the generator does not know."""


@cache
def requests_of(*, held_out: bool = False) -> tuple[Request, ...]:
    """Every request there is about the captions of training, or about the held-out ones, in a fixed order."""
    captions = split_captions("place")[held_out]
    return tuple((text, caption) for caption in captions for text in dict.fromkeys(_said(caption)))


def _said(caption: Caption) -> Iterator[str]:
    ((colour, shape),) = caption.things
    for bare, place in itertools.product(COLOUR_WORDS[colour], PLACE_WORDS[caption.where]):
        for form, noun in itertools.product(NOUN_FORMS, NOUNS[shape]):
            after_colour = "{colour}" in form
            yield form.format(
                colour=_with_article(bare),
                bare=bare,
                noun=noun if after_colour else _with_article(noun),
                place=place,
            )
        for form, look in itertools.product(LOOK_FORMS, LOOKS[shape]):
            yield form.format(bare=bare, look=look, place=place)


def _with_article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def loose_rewrite(caption: Caption, rate: float, rng: np.random.Generator) -> str:
    """A rewrite that is often wrong, as a base learns it.

    Each attribute is replaced at random with probability `rate`, as in `loosen`; a share of `UNKNOWN_RATE` is
    said in words that the generator does not know. A model trained on such rewrites knows the right one and
    often says another: a preference left to sharpen, which is what reinforcement learning does fast.
    """
    if rate == 0:
        return caption.text
    loose = loosen(caption, rate, rng)
    if rng.random() >= UNKNOWN_RATE:
        return loose.text
    ((colour, shape),) = loose.things
    choices = (COLOUR_WORDS[colour][1:], NOUNS[shape][1:], PLACE_WORDS[loose.where][1:])
    bare, noun, place = (str(rng.choice(several)) for several in choices)
    return f"{_with_article(bare)} {noun} {place}"


def vocabulary() -> list[str]:
    """Texts that hold every word of the requests and captions, as it stands there."""
    known = {word for text, _ in requests_of() for word in text.split()}
    known |= {word for caption in split_captions("place")[0] for word in caption.text.split()}
    known |= {*words(), *(noun for nouns in NOUNS.values() for noun in nouns)}
    known |= {colour for colours in COLOUR_WORDS.values() for colour in colours}
    first = {text.split()[0] for text, _ in requests_of()} | {"two", "three", "a", "an"}
    return [*sorted(first), *(f" {word}" for word in sorted(known))]


def write_prompts(directory: str | Path, *, seed: int = 0, train: int = 300, held_out: int = 80) -> None:
    """Write `requests_train.jsonl` and `requests_heldout.jsonl`, whose `caption` is what a request means.

    Every caption is asked for about equally often, in forms and words drawn at random.
    """
    rng = np.random.default_rng([seed, 2])  # not the stream that the model was trained on
    for name, count, held in (("train", train, False), ("heldout", held_out, True)):
        lines = [
            json.dumps({"prompt": text, "caption": caption.text}) + "\n"
            for text, caption in _evenly(requests_of(held_out=held), count, rng)
        ]
        (Path(directory) / f"requests_{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def _evenly(requests: Sequence[Request], count: int, rng: np.random.Generator) -> list[Request]:
    """`count` distinct requests, the captions in turn."""
    of: dict[Caption, list[Request]] = {}
    for index in rng.permutation(len(requests)):
        of.setdefault(requests[index][1], []).append(requests[index])
    turns = itertools.chain.from_iterable(itertools.zip_longest(*of.values()))
    return list(itertools.islice((request for request in turns if request is not None), count))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write the prompt sets of requests for pictures of shapes.")
    parser.add_argument("--out", required=True, help="directory to write to")
    write_prompts(parser.parse_args(arguments).out)


if __name__ == "__main__":
    main()
