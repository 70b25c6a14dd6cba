"""Contexts of unequal length as one batch, padded on the left so that all continue at the same column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unirl_env.models.backbone import TokenBackbone
from unirl_env.rollouts.engines.base import Request

__all__ = ["PaddedContexts", "distinct_contexts"]


def distinct_contexts(requests: Sequence[Request]) -> tuple[list[Request], Tensor]:
    """The first request of each distinct context, and for each request `[B]` which of them it shares.

    Contexts are the same if their tokens are, and their further inputs are the very same tensors.
    """
    places: dict[tuple, int] = {}
    first, row = [], []
    for request in requests:
        key = (request.tokens, *map(id, request.inputs.values()))
        if key not in places:
            places[key] = len(first)
            first.append(request)
        row.append(places[key])
    return first, torch.tensor(row)


@dataclass(frozen=True)
class PaddedContexts:
    """P contexts, L tokens wide.

    Attributes:
        tokens: `[P, L]` int64.
        positions: `[A, P, L]` int64.
        mask: `[P, L]` bool, True where a token is real; None if all are.
        next_position: `[P]` int64, the position of the first token after each context, on all axes.
        inputs: The model's further inputs, end to end.
    """

    tokens: Tensor
    positions: Tensor
    mask: Tensor | None
    next_position: Tensor
    inputs: dict[str, Tensor] | None

    @classmethod
    def of(
        cls, requests: Sequence[Request], model: TokenBackbone, device: torch.device | str = "cpu"
    ) -> PaddedContexts:
        """The contexts of `requests` for `model`, on `device`."""
        lengths = torch.tensor([len(request.tokens) for request in requests])
        width, axes = int(lengths.max()), model.position_axes
        tokens = torch.full((len(requests), width), model.pad_id)
        positions = torch.zeros(axes, len(requests), width, dtype=torch.int64)
        for i, request in enumerate(requests):
            begin = width - len(request.tokens)
            tokens[i, begin:] = torch.tensor(request.tokens)
            positions[:, i, begin:] = _positions(request, axes)
        mask = torch.arange(width) >= (width - lengths)[:, None]
        names = dict.fromkeys(name for request in requests for name in request.inputs if name != "positions")
        inputs = {
            name: torch.cat([r.inputs[name] for r in requests if name in r.inputs]).to(device)
            for name in names
        }
        return cls(
            tokens=tokens.to(device),
            positions=positions.to(device),
            mask=None if bool(mask.all()) else mask.to(device),
            next_position=(positions.amax((0, 2)) + 1).to(device),
            inputs=inputs or None,
        )


def _positions(request: Request, axes: int) -> Tensor:
    """`[A, L]`: those that the prompt brings, and one more for each further token."""
    known = request.inputs.get("positions")
    if known is None:
        return torch.arange(len(request.tokens)).expand(axes, -1)
    known = known.cpu()
    after = known.max() + 1 + torch.arange(len(request.tokens) - known.shape[1])
    return torch.cat([known, after.expand(axes, -1)], 1)
