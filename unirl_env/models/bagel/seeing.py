"""Who sees whom: one rule of attention, in the four ways that the decoder is read.

A token has one position, and positions never fall along a sequence. Tokens of a picture share theirs. A
token sees every token whose position does not lie after its own: words see what came before, tokens of a
picture also each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as nnf
from torch import Tensor

from unirl_env.models.shared.packed import Packing, packed_attention
from unirl_env.models.shared.prefix import Prefix


class Seeing(Protocol):
    """Attention of one forward pass."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend in layer number `layer`: `query` `[B, H, L, D]`, the others `[B, K, L, D]`, K divides H.

        Returns:
            `[B, L, H, D]`.
        """
        ...


@dataclass(frozen=True)
class Reading(Prefix):
    """Keys and values of P texts, and where what follows them stands.

    Attributes:
        position: `[P]` int64, the rotary position of a picture behind each text. It is less than `length`
            where the prompt brings pictures, whose tokens share one position.
    """

    position: Tensor

    def pick(self, row: Tensor) -> Reading:
        """The texts at `row` `[N]`, which may repeat some."""
        picked = super().pick(row)
        return Reading(picked.keys, picked.values, picked.length, self.position[row])

    @classmethod
    def stacked(cls, texts: Sequence[Reading]) -> Reading:
        """Texts that were read apart, padded to the longest."""
        width = max(each.width for each in texts)

        def layers(name: str) -> tuple[Tensor, ...]:
            stacks = zip(*(getattr(each, name) for each in texts), strict=True)
            return tuple(
                torch.cat([nnf.pad(each, (0, 0, 0, width - each.shape[2])) for each in stack])
                for stack in stacks
            )

        length = torch.cat([each.length for each in texts])
        return cls(layers("keys"), layers("values"), length, torch.cat([each.position for each in texts]))

    def trimmed(self) -> Reading:
        """The same without padding that all texts have."""
        width = int(self.length.max())
        if width == self.width:
            return self
        keys = tuple(layer[:, :, :width] for layer in self.keys)
        return Reading(keys, tuple(layer[:, :, :width] for layer in self.values), self.length, self.position)


class Packed:
    """Sequences one after another in a single row, each alone.

    Args:
        lengths: `[n]` int64.
        positions: `[1, L]` int64 where pictures are among the tokens; None where each position is new.
        device: Where the states are.
    """

    def __init__(self, lengths: Tensor, positions: Tensor | None, device: torch.device):
        self._packing = None if positions is not None else Packing.of(lengths, device)
        self._lengths = lengths.tolist()
        self._masks: Sequence[Tensor] = ()
        if positions is not None:
            rows = positions.split(self._lengths, 1)
            self._masks = [seen_from(row, row)[:, None] for row in rows]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `Seeing`."""
        if self._packing is not None:
            return packed_attention(None, query, key, value, None, packed_sequences=self._packing)[0]
        parts = zip(*(state.split(self._lengths, 2) for state in (query, key, value)), strict=True)
        return torch.cat([_attend(*part, mask) for part, mask in zip(parts, self._masks, strict=True)], 1)


class Cached:
    """B padded rows that continue what a cache of transformers holds.

    Args:
        cache: Updated in place.
        positions: `[B, t]` int64.
        mask: `[B, past + t]` bool, where a token is real; None if all are.
        plain: Whether each position is new.
    """

    def __init__(self, cache: Any, positions: Tensor, mask: Tensor | None, *, plain: bool):
        self._cache = cache
        past, count = cache.get_seq_length(), positions.shape[1]
        self._mask, self._causal = None, False
        if count == 1:
            self._mask = None if mask is None else mask[:, None, None]
        elif past == 0 and mask is None and plain:
            self._causal = True
        else:
            own = seen_from(positions, positions)
            if mask is not None:
                own = own & mask[:, None, past:]
            # A row of padding sees itself, so that softmax has something to sum.
            own = own | torch.eye(count, dtype=torch.bool, device=own.device)
            before = own.new_ones(len(own), count, past)
            if mask is not None:
                before = before & mask[:, None, :past]
            self._mask = torch.cat([before, own], 2)[:, None]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `Seeing`."""
        key, value = self._cache.update(key, value, layer)
        return _attend(query, key, value, self._mask, causal=self._causal)


class Recorded:
    """P texts padded on the right, whose keys and values are kept.

    Args:
        positions: `[P, L]` int64 where pictures are among the tokens; None where each position is new.
    """

    def __init__(self, positions: Tensor | None):
        self._mask = None if positions is None else seen_from(positions, positions)[:, None]
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `Seeing`."""
        self._kept[layer] = key, value
        return _attend(query, key, value, self._mask, causal=self._mask is None)

    def reading(self, length: Tensor, position: Tensor) -> Reading:
        """What was kept; `length` `[P]` of the tokens are real, and `position` `[P]` follows them."""
        layers = [self._kept[layer] for layer in sorted(self._kept)]
        keys, values = zip(*layers, strict=True)
        return Reading(tuple(keys), tuple(values), length, position)


class Drawn:
    """N pictures, each of which sees its text and the whole of itself.

    Args:
        texts: N texts.
        count: Tokens of a picture.
    """

    def __init__(self, texts: Reading, count: int):
        self._texts = texts
        # Without padding there is nothing to hide, and the fastest attention applies.
        padded = bool((texts.length != texts.width).any())
        self._mask = texts.visible(count) if padded else None

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `Seeing`."""
        return _attend(query, *self._texts.extended(layer, key, value), self._mask)


def seen_from(position: Tensor, others: Tensor) -> Tensor:
    """`[B, L, M]` bool: which of `others` `[B, M]` a token at each of `position` `[B, L]` sees."""
    return others[:, None] <= position[..., None]


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, causal: bool = False
) -> Tensor:
    """Attention `[B, L, H, D]`, by the kernels that torch has for it."""
    batch, heads, length, width = query.shape
    groups = heads // key.shape[1]
    if length == 1:  # the heads that share a key read it together
        together = query.reshape(batch, key.shape[1], groups, width)
        out = nnf.scaled_dot_product_attention(together, key, value, attn_mask=mask)
        return out.reshape(batch, 1, heads, width)
    if mask is not None and groups > 1:
        # Kernels that take a mask do not know of shared keys; without them all scores lie in memory.
        key, value = (state.repeat_interleave(groups, 1) for state in (key, value))
    out = nnf.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=query.shape[1] != key.shape[1]
    )
    return out.transpose(1, 2)
