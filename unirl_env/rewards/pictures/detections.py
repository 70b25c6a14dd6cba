"""Objects found in a picture, and what a request says about them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unirl_env.arguments.values import is_whole
from unirl_env.prompts.shapes import PLACES, Caption

ASPECTS = ("object", "count", "colour", "position")
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Detection:
    """One object of a picture.

    Attributes:
        label: What it is.
        score: How sure that is, in [0, 1].
        box: Its left, upper, right and lower edge in pixels.
        mask: `[H, W]` bool over the whole picture, of its own pixels; None if only the box is known.
        colour: The name of its colour, from detectors that know it; empty if it has none of the names.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]
    mask: Tensor | None = None
    colour: str | None = None


@dataclass(frozen=True)
class Clause:
    """What a picture must show, or must not.

    Attributes:
        label: The class of the objects.
        count: How many there must be at least; in a clause that excludes, how many there must not be.
        colour: The colour of all of them; empty if any will do.
        relation: How all of them lie to those of clause `target`; empty if anyhow.
        target: The index of an earlier clause.
        place: Where in the picture they lie, a name of `unirl_env.prompts.shapes.PLACES`; empty if anywhere.
    """

    label: str
    count: int = 1
    colour: str = ""
    relation: str = ""
    target: int = 0
    place: str = ""


@dataclass(frozen=True)
class Wish:
    """All of `include` must be there, and none of `exclude`.

    Attributes:
        include: What must be there.
        exclude: What must not.
        counting: Whether it is about numbers, where only very sure objects count.
    """

    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()
    counting: bool = False


def wish_from_metadata(metadata: Mapping[str, Any]) -> Wish | None:
    """Read a request in GenEval's format; None where there is none.

    It is `{"tag": ..., "include": [{"class": "bench", "count": 2, "color": "red", "position": ["left of",
    0]}], "exclude": [{"class": "bench", "count": 3}]}`, where all but `class` may be missing. Beyond GenEval,
    a clause may have a `place` in the picture.

    Raises:
        ValueError: Naming what is malformed.
    """
    if "include" not in metadata and "exclude" not in metadata:
        return None
    include, exclude = (
        tuple(_clause(item, i) for i, item in enumerate(_items(metadata, key)))
        for key in ("include", "exclude")
    )
    if not include and not exclude:
        raise ValueError("`include` and `exclude` are empty")
    return Wish(include, exclude, metadata.get("tag") == "counting")


def wish_from_caption(caption: Caption) -> Wish:
    """What a caption of the shapes world asks for; numbers are exact."""
    (colour, shape), count = caption.things[0], len(caption.things)
    if caption.kind == "count":
        exclude = (Clause(shape, count + 1),)
        return Wish((Clause(shape, count, colour),), exclude, counting=True)
    if caption.kind == "place":
        return Wish((Clause(shape, 1, colour, place=caption.where),))
    other_colour, other_shape = caption.things[1]
    return Wish((Clause(other_shape, 1, other_colour), Clause(shape, 1, colour, caption.where, 0)))


def _items(metadata: Mapping[str, Any], key: str) -> Sequence[Any]:
    items = metadata.get(key) or ()
    if not isinstance(items, list | tuple):
        raise ValueError(f"`{key}` must be a list, got {items!r}")
    return items


def _clause(item: Any, index: int) -> Clause:
    if not isinstance(item, Mapping) or not isinstance(item.get("class"), str):
        raise ValueError(f"a clause must be a mapping with `class`, got {item!r}")
    # A data set whose clauses differ in their keys fills them up with None.
    count = 1 if item.get("count") is None else item["count"]
    colour, place = item.get("color") or "", item.get("place") or ""
    if not is_whole(count) or count < 1:
        raise ValueError(f"`count` must be a whole number from 1 on, got {count!r}")
    if not isinstance(colour, str):
        raise ValueError(f"`color` must be a text, got {colour!r}")
    if place and place not in PLACES:
        raise ValueError(f"`place` must be one of {list(PLACES)}, got {place!r}")
    relation, target = "", 0
    if item.get("position") is not None:
        position = item["position"]
        if not isinstance(position, list | tuple) or len(position) != 2 or position[0] not in RELATIONS:
            raise ValueError(f"`position` must be one of {RELATIONS} and an index, got {position!r}")
        relation, target = position
        if not is_whole(target) or not 0 <= target < index:
            raise ValueError(f"`position` must point to an earlier clause, got {position!r}")
    return Clause(item["class"], count, colour, relation, target, place)


def relations(first: Detection, second: Detection, dead_zone: float = 0.1) -> frozenset[str]:
    """How `first` lies to `second`: of "left of", "right of", "above" and "below", none to two.

    The offset of the middles, less `dead_zone` times the sum of the objects' sizes in either direction, is
    divided by the length of the whole offset; a direction holds where that is above 0.5.

    Reference:
        Ghosh et al. 2023 (GenEval), arXiv:2310.11513, appendix, and its published evaluation.
    """
    offsets, shrunk = [], []
    for low, high in ((0, 2), (1, 3)):
        offset = (first.box[low] + first.box[high] - second.box[low] - second.box[high]) / 2
        sizes = abs(first.box[high] - first.box[low]) + abs(second.box[high] - second.box[low])
        offsets.append(offset)
        shrunk.append(math.copysign(max(abs(offset) - dead_zone * sizes, 0.0), offset))
    if max(abs(part) for part in shrunk) < 1e-3:
        return frozenset()
    x, y = (part / math.hypot(*offsets) for part in shrunk)
    holds = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return frozenset(name for name, true in holds.items() if true)


def checks(
    wish: Wish,
    found: Mapping[str, Sequence[Detection]],
    colours_of: Callable[[Sequence[Detection], str], Sequence[str]],
    size: tuple[int, int],
    dead_zone: float = 0.1,
) -> dict[str, list[float]]:
    """Everything that a wish asks for, by aspect: the share of objects of which it holds, 1 if of all.

    As in GenEval, a clause looks at the `count` surest objects of its class. Where several clauses name one
    class, which GenEval never does, they share its objects out: each takes those of its colour first.

    Args:
        wish: What is asked for.
        found: The detections by label, the surest first.
        colours_of: Names the colours of detections of a label.
        size: Height and width of the picture in pixels.
        dead_zone: See `relations`.
    """
    result: dict[str, list[float]] = {aspect: [] for aspect in ASPECTS}
    groups = _shared_out(wish.include, found, colours_of)
    for clause, group in zip(wish.include, groups, strict=True):
        result["object"].append(float(bool(group)))
        if clause.colour:
            colours = list(colours_of(group, clause.label)) if group else []
            result["colour"].append(colours.count(clause.colour) / clause.count)
        if clause.relation:
            pairs = [(one, other) for one in group for other in groups[clause.target]]
            holds = [clause.relation in relations(*pair, dead_zone) for pair in pairs]
            result["position"].append(sum(holds) / len(holds) if holds else 0.0)
        if clause.place:
            result["position"].append(sum(_place(one, size) == clause.place for one in group) / clause.count)
    result["count"], absent = _numbers(wish, {label: len(objects) for label, objects in found.items()})
    result["object"] += absent
    return result


def _numbers(wish: Wish, found: Mapping[str, int]) -> tuple[list[float], list[float]]:
    """How right the number of each class is that has one, and whether what must not be there is not.

    A class that is both included and excluded, "exactly three", is one thing to check: a picture without any
    earns nothing for having fewer than four.
    """
    counts: list[float] = []
    absent: list[float] = []
    wanted: dict[str, int] = {}
    for clause in wish.include:
        wanted[clause.label] = wanted.get(clause.label, 0) + clause.count
    for label, count in wanted.items():
        limits = [clause.count for clause in wish.exclude if clause.label == label]
        if count > 1 or limits:
            number = found.get(label, 0)
            counts.append(min([1.0, number / count, *(_under(limit, number) for limit in limits)]))
    for clause in wish.exclude:
        if clause.label not in wanted:
            share = _under(clause.count, found.get(clause.label, 0))
            (absent if clause.count == 1 else counts).append(share)
    return counts, absent


def _under(limit: int, number: int) -> float:
    """1 for less objects than the limit, else the share of them that might be there."""
    return 1.0 if number < limit else (limit - 1) / number


def _shared_out(
    clauses: Sequence[Clause],
    found: Mapping[str, Sequence[Detection]],
    colours_of: Callable[[Sequence[Detection], str], Sequence[str]],
) -> list[list[Detection]]:
    """The objects that each clause looks at."""
    labels = [clause.label for clause in clauses]
    left = {label: list(range(len(found.get(label, ())))) for label in labels}
    names = {
        label: colours_of(found[label], label)
        for label in set(labels)
        if labels.count(label) > 1 and found.get(label)
    }
    groups: list[list[int]] = []
    for clause in clauses:
        own = [i for i in left[clause.label] if clause.colour and names.get(clause.label)]
        own = [i for i in own if names[clause.label][i] == clause.colour][: clause.count]
        left[clause.label] = [i for i in left[clause.label] if i not in own]
        groups.append(own)
    for clause, group in zip(clauses, groups, strict=True):
        while len(group) < clause.count and left[clause.label]:
            group.append(left[clause.label].pop(0))
    return [[found[clause.label][i] for i in group] for clause, group in zip(clauses, groups, strict=True)]


def _place(one: Detection, size: tuple[int, int]) -> str:
    """The named place to which the middle of an object is nearest."""
    x, y = (one.box[0] + one.box[2]) / 2 / size[1], (one.box[1] + one.box[3]) / 2 / size[0]
    return min(PLACES, key=lambda name: math.hypot(x - PLACES[name][0], y - PLACES[name][1]))
