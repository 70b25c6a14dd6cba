"""What a network is given, row by row, and how far two such rows are apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unirl_env.models.shared.listening import Call

SILENT = ("return_dict",)
"""Arguments that say nothing about a prediction."""
APART = float("inf")


class Gap(NamedTuple):
    """How far one argument is from another.

    Attributes:
        size: Largest difference, relative to the largest number where that is above 1; infinite where they
            cannot be compared.
        told: Both, in words.
    """

    size: float
    told: str


class Row(NamedTuple):
    """One latent's share of a call.

    Attributes:
        arguments: By name.
        answer: What the network answered, `[...]`; None before it has.
    """

    arguments: dict[str, Any]
    answer: Any


def rows_of(calls: Iterable[Call]) -> list[Row]:
    """The rows of calls, one after another."""
    found = []
    for call in calls:
        for i in range(call.rows):
            arguments = {name: row_of(value, i, call.rows) for name, value in call.arguments.items()}
            found.append(Row(arguments, None if call.answer is None else call.answer[i]))
    return found


def row_of(value: Any, row: int, rows: int) -> Any:
    """What of an argument belongs to one of `rows` rows; the whole where it has no axis of rows.

    A single row of a tensor is that of all.
    """
    if isinstance(value, Mapping):
        return {name: row_of(each, row, rows) for name, each in value.items()}
    if isinstance(value, Tensor):
        own = value.ndim > 0 and len(value) in (1, rows)
        return value[row if len(value) == rows else 0] if own else value
    return value[row] if isinstance(value, list | tuple) and len(value) == rows else value


def gaps(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Gap]:
    """By the names of the arguments, how far `one` row is from the `other`.

    Texts that are padded to another width are compared as far as their masks count them.
    """
    one, other = _unpadded(dict(one), dict(other))
    names = [name for name in (*other, *(n for n in one if n not in other)) if name not in SILENT]
    return {name: gap(one.get(name), other.get(name)) for name in names}


def gap(one: Any, other: Any) -> Gap:
    """How far two values of one argument are apart; None and an empty mapping are the same."""
    told = f"{words_for(one)} in the place of {words_for(other)}"
    if _absent(one) or _absent(other):
        return Gap(0.0 if _absent(one) and _absent(other) else APART, told)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        found = [gap(one.get(name), other.get(name)) for name in {**one, **other}]
        return max(found, key=lambda each: each.size)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            return Gap(APART, told)
        return max(
            (gap(*pair) for pair in zip(one, other, strict=True)), key=lambda g: g.size, default=Gap(0, "")
        )
    if _numbers(one) and _numbers(other):
        return _between(torch.as_tensor(one).detach().cpu(), torch.as_tensor(other).detach().cpu(), told)
    return Gap(0.0 if type(one) is type(other) and one == other else APART, told)


def _between(one: Tensor, other: Tensor, told: str) -> Gap:
    if one.numel() == 1 == other.numel():
        one, other = one.flatten(), other.flatten()
    if one.shape != other.shape or (one.is_floating_point() != other.is_floating_point() and one.numel() > 1):
        return Gap(APART, told)  # masks of numbers are added to scores, masks of truth values are not
    if not one.numel():
        return Gap(0.0, told)
    one, other = one.double(), other.double()
    size = float((one - other).abs().max() / other.abs().max().clamp_min(1.0))
    return Gap(size if size == size else APART, told)


def words_for(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, Tensor):
        if value.numel() == 1:
            return f"{float(value):.6g}"
        kind = str(value.dtype).removeprefix("torch.")
        if not value.numel():
            return f"nothing ({kind} {list(value.shape)})"
        wide = value.detach().float()
        return f"{kind} {list(value.shape)} of {float(wide.min()):.4g} to {float(wide.max()):.4g}"
    if isinstance(value, list | tuple) and any(isinstance(each, Tensor) for each in value):
        return f"a list of {', '.join(map(words_for, value[:3]))}"
    return "nothing" if _absent(value) else repr(value)[:60]


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, Mapping) and not value)


def _numbers(value: Any) -> bool:
    return isinstance(value, Tensor | int | float)


def _unpadded(one: dict[str, Any], other: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both rows with their texts cut to what the masks count, where they are padded to unequal widths.

    A mask that is left out counts everything; where there is no other difference, it is one all the same.
    """
    for name in {**one, **other}:
        masks = one.get(name), other.get(name)
        given = [mask for mask in masks if mask is not None]
        if "mask" not in name or not given or not all(map(_flat, given)):
            continue
        texts = [text for text in one if _is_text(one, text, masks[0]) and _is_text(other, text, masks[1])]
        if not texts:
            continue
        width = [len(row[texts[0]]) for row in (one, other)]
        full = [torch.ones(n) if mask is None else mask for n, mask in zip(width, masks, strict=True)]
        if width[0] == width[1]:
            if len(given) == 1:
                one[name], other[name] = (_counted(mask).float() for mask in full)
            continue
        counts = [int(_counted(mask).sum()) for mask in full]
        if all(bool(_counted(mask)[:count].all()) for mask, count in zip(full, counts, strict=True)):
            for row, count in zip((one, other), counts, strict=True):
                row[name] = torch.ones(count)
                for text in texts:
                    row[text] = row[text][:count]
    return one, other


def _flat(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 1


def _is_text(row: Mapping[str, Any], name: str, mask: Tensor | None) -> bool:
    """Whether an argument has the mask's tokens along its first axis; latents, the first argument, never."""
    value = row.get(name)
    if not isinstance(value, Tensor) or value.ndim != 2 or name == next(iter(row)):
        return False
    return "ids" not in name and (mask is None or len(mask) == len(value))


def _counted(mask: Tensor) -> Tensor:
    """Which tokens a mask counts, `[L]` bool; one with negative numbers is added to scores."""
    return mask == 0 if mask.is_floating_point() and bool((mask < 0).any()) else mask > 0
