"""The distribution over a vocabulary: cut to its likeliest tokens, measured, and drawn from.

Logits arrive divided by the temperature and shifted so that a row's largest is 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DROPPED = -200.0  # exp(-200) is exactly 0 in float32, and 0 * -200 is no NaN
HEAD = 256  # a nucleus is first looked for among this many of the likeliest tokens
SORTED_AT_ONCE = 1 << 20  # logits; bounds the scratch memory of a nucleus that is wider than that
QUANTA = (
    2.0**42
)  # the likeliest token's share in the integers that are drawn from; 2**20 of them fit an int64


class Cells(NamedTuple):
    """The distribution of n rows, `weights / total`.

    Attributes:
        shifted: `[n, V]` float32, DROPPED outside the set that is kept.
        weights: `[n, V]`, `exp(shifted)`.
        total: `[n]`.
    """

    shifted: Tensor
    weights: Tensor
    total: Tensor


def cells(shifted: Tensor, floor: Tensor | None, token: Tensor | None) -> Cells:
    """Cut `shifted`, in its own memory, to what is at least `floor`, and the given token.

    Args:
        shifted: `[n, V]` float32; -inf forbids a token.
        floor: `[n, 1]`, from `lowest_kept`.
        token: `[n]` int64 or None.
    """
    if floor is not None:
        outside = shifted.detach() < floor
        if token is not None:
            outside.scatter_(-1, token[:, None], False)
        shifted = shifted.masked_fill_(outside, DROPPED)
    weights = shifted.exp()
    return Cells(shifted, weights, weights.sum(-1))


def token_log_prob(rows: Cells, token: Tensor) -> Tensor:
    """`[n]` of `token` `[n]`, in nats."""
    return rows.shifted.gather(-1, token[:, None])[:, 0] - rows.total.log()


@torch.no_grad()
def entropy(rows: Cells, *, finite: bool = False) -> Tensor:
    """`[n]` in nats; to be called last, because it may write over `shifted`.

    Args:
        rows: The distributions.
        finite: Whether no logit is -inf, which would make 0 * inf.
    """
    shifted = rows.shifted.clone() if rows.shifted.requires_grad else rows.shifted
    products = (shifted if finite else shifted.clamp_(min=DROPPED)).mul_(rows.weights)
    return rows.total.log() - products.sum(-1) / rows.total


@torch.no_grad()
def lowest_kept(shifted: Tensor, top_p: float, top_k: int) -> Tensor | None:
    """`[n, 1]`, the smallest of `shifted` `[n, V]` that is kept; None keeps all."""
    floor = None
    if 0 < top_k < shifted.shape[-1]:
        floor = shifted.topk(top_k).values[:, -1:]
    if top_p < 1:
        if floor is not None:
            shifted = shifted.masked_fill(shifted < floor, -torch.inf)
        mass = top_p * shifted.exp().sum(-1, keepdim=True).double()
        nucleus = _last_of_nucleus(shifted, mass, HEAD)
        floor = nucleus if floor is None else torch.maximum(floor, nucleus)
    return floor


def _last_of_nucleus(shifted: Tensor, mass: Tensor, width: int) -> Tensor:
    """`[n, 1]`, the value with which the largest reach `mass` `[n, 1]`, looked for among `width` at first."""
    width = min(width, shifted.shape[-1])
    values = shifted.topk(width).values
    reached = values.exp().cumsum(-1, dtype=torch.float64)
    last = (reached < mass).sum(-1, keepdim=True).clamp_max_(width - 1)
    floor = values.gather(-1, last)
    if width < shifted.shape[-1]:
        lacking = torch.nonzero(reached[:, -1] < mass[:, 0]).flatten()
        for part in torch.split(lacking, max(1, SORTED_AT_ONCE // shifted.shape[-1])):
            floor[part] = _last_of_nucleus(shifted[part], mass[part], 16 * width)
    return floor


def scratch_bytes(vocabulary: int, top_p: float, top_k: int) -> int:
    """Scratch memory that cutting and measuring one row needs, all copies counted."""
    if top_p == 1 and top_k == 0:
        return 8 * vocabulary
    return 12 * vocabulary + 32 * min(vocabulary, max(HEAD, top_k))


@torch.no_grad()
def draw(rows: Cells, uniform: Tensor) -> Tensor:
    """`[n]` int64: the inverse of the cumulative distribution at `uniform` `[n]` float64 in [0, 1)."""
    # Integers: their sums do not depend on the order in which a device adds, so empty cells have no width.
    cumulative = (rows.weights * QUANTA).long().cumsum_(-1)
    total = cumulative[:, -1:]
    target = torch.minimum((uniform[:, None] * total).long(), total - 1)
    return torch.searchsorted(cumulative, target, right=True)[:, 0]
