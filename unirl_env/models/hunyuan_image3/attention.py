"""How queries look at keys: packed to score, with a cache to generate, to read a text, and for a picture.

A token has two positions, down and across. A word has its place in the sequence for both. The tokens of a
picture lie on a grid whose middle is where the middle of the picture lies in the sequence; half of the
frequencies turn with one axis, half with the other.

Reference:
    Su, Transformer upgrade path 17: simple thoughts on multimodal positions (kexue.fm/archives/10352).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from unirl_env.models.shared.packed import Packing, packed_attention
from unirl_env.models.shared.prefix import Prefix


class Attend(Protocol):
    """One way of attention, for all layers of a forward pass."""

    def __call__(self, module: nn.Module, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """What queries `[B, H, Q, D]` see, `[B, Q, H, D]`, of keys and values `[B, K, Q, D]` and before."""
        ...


@dataclass(frozen=True)
class Packed:
    """Sequences one after another in one row; each sees itself alone, causally."""

    packing: Packing

    def __call__(self, module: nn.Module, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention within the sequences of a packing."""
        return packed_attention(module, query, key, value, None, packed_sequences=self.packing)[0]


@dataclass(frozen=True)
class Cached:
    """Rows that continue what a cache holds, causally.

    Attributes:
        cache: Of transformers, updated in place.
        mask: `[B, past + t]` bool, True where a token is real; None if all are.
    """

    cache: Any
    mask: Tensor | None

    def __call__(self, module: nn.Module, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention to what the cache holds and to what comes."""
        if self.cache is not None:
            key, value = self.cache.update(key, value, layer)
        seen = self._visible(query.shape[2], key.shape[2], query.device)
        return packed_attention(module, query, key, value, seen)[0]

    def _visible(self, new: int, total: int, device: torch.device) -> Tensor | None:
        """`[B, 1, new, total]`; None where plain causal attention is just that."""
        if self.mask is None and new in (1, total):
            return None
        place = torch.arange(total, device=device)
        own = place[total - new :, None]
        seen = (place <= own)[None, None]
        if self.mask is not None:
            seen = seen & self.mask[:, None, None]
        # Padding looks at itself: some kernels make a row that sees nothing not a number, which spreads.
        return seen | (place == own)


@dataclass(frozen=True)
class Reading:
    """Texts padded on the right, causally: padding stands where no word looks, and needs no mask."""

    def __call__(self, module: nn.Module, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention to all words up to one's own."""
        seen = nnf.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1]
        )
        return seen.transpose(1, 2)


@dataclass(frozen=True)
class Picture:
    """A time token and a picture's tokens behind texts that were read before.

    The picture's tokens see the text, the time and one another; the time token sees the text and itself.

    Attributes:
        prefix: The texts.
        visible: `[N, 1, 1, L + Q]` bool, what is no padding; None where all of it is text.
    """

    prefix: Prefix
    visible: Tensor | None

    @classmethod
    def behind(cls, prefix: Prefix, block: int) -> Picture:
        """The attention of `block` tokens, worked out once for all layers."""
        visible = prefix.visible(block)
        # Without padding there is nothing to hide, and faster kernels do.
        return cls(prefix, None if bool(visible.all()) else visible)

    def __call__(self, module: nn.Module, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention to the texts and, for the picture's tokens, to the whole picture."""
        before = self.prefix.width + 1
        key, value = self.prefix.extended(layer, key, value)
        options = {"enable_gqa": query.shape[1] != key.shape[1]}
        time = nnf.scaled_dot_product_attention(
            query[:, :, :1],
            key[:, :, :before],
            value[:, :, :before],
            attn_mask=None if self.visible is None else self.visible[..., :before],
            **options,
        )
        picture = nnf.scaled_dot_product_attention(
            query[:, :, 1:], key, value, attn_mask=self.visible, **options
        )
        return torch.cat([time, picture], 2).transpose(1, 2)


def word_positions(places: Tensor) -> Tensor:
    """Both positions `[..., 2]` of words at `places` `[...]` of their sequence."""
    return places[..., None].expand(*places.shape, 2)


def picture_positions(start: Tensor, height: int, width: int) -> Tensor:
    """Positions `[N, height * width, 2]` of pictures whose first token stands at `start` `[N]`.

    Args:
        start: Place in the sequence of the upper left token.
        height: Tokens.
        width: Tokens.
    """
    count = height * width
    # Half positions are rounded down, as in training.
    top, left = (count - height) // 2, (count - width) // 2
    down = torch.arange(height, device=start.device) + top
    across = torch.arange(width, device=start.device) + left
    grid = torch.stack(torch.meshgrid(down, across, indexing="ij"), -1).flatten(0, 1)
    return start[:, None, None] + grid


def rotation(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine `[..., head_dim]` float32 of positions `[..., 2]` (down, across)."""
    pairs = torch.arange(0, head_dim, 2, device=positions.device).float()
    frequencies = 1.0 / theta ** (pairs / head_dim)
    axis = torch.arange(head_dim // 2, device=positions.device) % 2
    angle = positions.float()[..., axis] * frequencies
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def rotate(heads: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Heads `[B, H, Q, D]`, turned by cosine and sine `[B, Q, D]`, in float32."""
    cosine, sine = (part[:, None] for part in turn)
    one, other = heads.chunk(2, -1)
    return heads * cosine + torch.cat([-other, one], -1) * sine
