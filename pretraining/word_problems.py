"""Word problems of several steps, made from numbers; answers are whole numbers.

`python -m pretraining.word_problems --out unirl_env/prompts/sets` writes the prompt sets about
arithmetic that ship: `math_*` (these problems), `sums_*` and `sums_tool_*` (see `sums_data`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pretraining.sums_data import direct_prompt, split_sums, tool_prompt

__all__ = ["word_problem", "write_prompts"]

Draw = Callable[[int, int], int]

NAMES = ("Ada", "Bela", "Chidi", "Dana", "Emre", "Farah", "Goran", "Hana", "Ines", "Jonas", "Kofi", "Lena")
GOODS = ("pencils", "stamps", "marbles", "postcards", "apples", "buttons", "stickers", "shells")


def _shopping(draw: Draw, name: str, other: str, thing: str) -> tuple[str, int]:
    count, price, second, more = draw(3, 12), draw(2, 9), draw(5, 40), draw(1, 2)
    cost = count * price + second
    paid = (cost // 50 + more) * 50
    return (
        f"{name} buys {count} boxes of {thing} for {price} dollars each and a lamp for {second} "
        f"dollars, and pays with {paid} dollars. How many dollars does {name} get back?"
    ), paid - cost


def _collection(draw: Draw, name: str, other: str, thing: str) -> tuple[str, int]:
    start, times, given, found = draw(5, 30), draw(2, 5), draw(1, 9), draw(2, 25)
    return (
        f"{name} has {start} {thing}. {other} has {times} times as many. {other} gives {given} of "
        f"them to {name} and then finds {found} more. How many {thing} does {other} have now?"
    ), start * times - given + found


def _journey(draw: Draw, name: str, other: str, thing: str) -> tuple[str, int]:
    first, hours, second, more = draw(8, 20) * 5, draw(2, 6), draw(8, 20) * 5, draw(2, 5)
    return (
        f"A train travels {hours} hours at {first} kilometres per hour and then {more} hours at "
        f"{second} kilometres per hour. How many kilometres does it travel in all?"
    ), first * hours + second * more


def _sharing(draw: Draw, name: str, other: str, thing: str) -> tuple[str, int]:
    friends, each, left, eaten = draw(3, 9), draw(4, 15), draw(1, 2), draw(2, 20)
    return (
        f"{name} had some {thing}. After losing {eaten} of them, {name} shared the rest among "
        f"{friends} friends, {each} for each, and {left} remained. How many {thing} did {name} "
        "have at first?"
    ), friends * each + left + eaten


def _garden(draw: Draw, name: str, other: str, thing: str) -> tuple[str, int]:
    width, more, path = draw(4, 15), draw(2, 9), draw(2, 4)
    length = width + more
    return (
        f"A garden is {width} metres wide and {more} metres longer than wide. A path of {path} "
        "metres width runs around it on the outside. What is the area of the path in square "
        "metres?"
    ), (width + 2 * path) * (length + 2 * path) - width * length


def _ages(draw: Draw, name: str, other: str, thing: str) -> tuple[str, int]:
    young, times, years = draw(4, 14), draw(2, 5), draw(3, 20)
    return (
        f"{name} is {young} years old and {other} is {times} times as old. How old will the two be"
        f" together in {years} years?"
    ), young * (1 + times) + 2 * years


def _discount(draw: Draw, name: str, other: str, thing: str) -> tuple[str, int]:
    price, percent, count = draw(3, 20) * 20, draw(1, 9) * 5, draw(2, 6)
    return (
        f"A chair costs {price} dollars. In a sale its price falls by {percent} percent. {name} "
        f"buys {count} chairs in the sale. How many dollars does that cost?"
    ), count * price * (100 - percent) // 100


def _factory(draw: Draw, name: str, other: str, thing: str) -> tuple[str, int]:
    machines, rate, hours, bad, early = draw(3, 9), draw(10, 40), draw(4, 9), draw(2, 30), draw(2, 3)
    return (
        f"A workshop has {machines} machines, and each makes {rate} {thing} an hour. They run for "
        f"{hours} hours, but one of them stops {early} hours early. {bad} of the {thing} are "
        "faulty. How many good ones are there?"
    ), rate * (machines * hours - early) - bad


KINDS = (_shopping, _collection, _journey, _sharing, _garden, _ages, _discount, _factory)
"""Each makes a problem and its answer of a source of numbers, two people and some goods."""


def word_problem(rng: np.random.Generator) -> dict[str, str]:
    """A problem as `prompt` and its `answer`."""
    kind = KINDS[rng.integers(len(KINDS))]
    name, other = rng.choice(NAMES, size=2, replace=False)
    question, answer = kind(
        lambda low, high: int(rng.integers(low, high + 1)), name, other, rng.choice(GOODS)
    )
    return {"prompt": question, "answer": str(answer)}


def _sums(pairs: Sequence[tuple[int, int]], text: Callable[[tuple[int, int]], str]) -> list[dict[str, str]]:
    return [{"prompt": text(pair), "answer": str(sum(pair))} for pair in pairs]


def write_prompts(directory: str | Path, *, seed: int = 0) -> None:
    """Write the six sets; train and held out have no problem in common."""
    rng = np.random.default_rng(seed)
    problems: dict[str, dict[str, str]] = {}
    while len(problems) < 500:
        problem = word_problem(rng)
        problems.setdefault(problem["prompt"], problem)
    asked = list(problems.values())
    train, heldout = split_sums()
    sets = {
        "math_train": asked[:400],
        "math_heldout": asked[400:],
        "sums_train": _sums(train[:2000], direct_prompt),
        "sums_heldout": _sums(heldout[:300], direct_prompt),
        "sums_tool_train": _sums(train[2000:2500], tool_prompt),
        "sums_tool_heldout": _sums(heldout[300:400], tool_prompt),
    }
    for name, entries in sets.items():
        lines = "".join(json.dumps(entry) + "\n" for entry in entries)
        (Path(directory) / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write the prompt sets about arithmetic.")
    parser.add_argument("--out", required=True, help="directory to write to")
    write_prompts(parser.parse_args(arguments).out)


if __name__ == "__main__":
    main()
