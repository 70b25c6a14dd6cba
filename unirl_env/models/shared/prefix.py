"""What a transformer remembers of the text before a picture: keys and values, computed once per episode."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prefix:
    """Keys and values of P texts, padded on the right; read by every denoising step, written by none.

    Attributes:
        keys: For each layer `[P, H, L, D]`, with gradient where the texts were read with gradient.
        values: For each layer `[P, H, L, D]`.
        length: `[P]` int64, how many of the L places are text.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    length: Tensor

    def __len__(self) -> int:
        return len(self.length)

    @property
    def width(self) -> int:
        """L."""
        return self.keys[0].shape[2]

    def pick(self, row: Tensor) -> Prefix:
        """The texts at `row` `[N]`, which may repeat some."""
        if len(row) == len(self) and torch.equal(row, torch.arange(len(self), device=row.device)):
            return self
        return Prefix(
            tuple(layer.index_select(0, row) for layer in self.keys),
            tuple(layer.index_select(0, row) for layer in self.values),
            self.length[row],
        )

    def extended(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[P, H, L + Q, D]` of a layer, followed by those `[P, H, Q, D]` of a block."""
        return torch.cat([self.keys[layer], keys], 2), torch.cat([self.values[layer], values], 2)

    def visible(self, block: int) -> Tensor:
        """`[P, 1, 1, L + block]` bool: every place of a block sees the text (no padding) and the block."""
        place = torch.arange(self.width + block, device=self.length.device)
        return ((place < self.length[:, None]) | (place >= self.width))[:, None, None]
