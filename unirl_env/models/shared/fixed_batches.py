"""Forwards in batches of one size: they bound memory, and a row's result does not depend on the whole batch.

Matrix libraries choose another order of summation for another number of rows, so a network's last bits change
with the size of its batch. In batches of one fixed size, the last one padded, they do not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unirl_env.types import Sample

PIXELS_AT_ONCE, PICTURES_AT_ONCE = 256 * 256, 8
"""In one forward: small pictures are faster together, larger ones fill a device by themselves, and a batch
that is filled up is work for nothing."""
TOKENS_AT_ONCE, TEXTS_AT_ONCE = 1024, 8
"""Likewise of texts."""


def in_fixed_batches(function: Callable[..., Tensor], *batches: Tensor, rows: int | None) -> Tensor:
    """`function(*batches)`, evaluated `rows` rows at a time.

    Args:
        function: Of tensors `[n, ...]`, to `[n, ...]`; row i must depend on row i alone.
        *batches: Tensors `[N, ...]`.
        rows: Size of a batch, the last one filled up with copies of its last row; None evaluates all at once.

    Returns:
        `[N, ...]`.
    """
    count = len(batches[0])
    if rows is None or count == 0:
        return function(*batches)
    results = []
    for start in range(0, count, rows):
        fixed = [batch[start : start + rows] for batch in batches]
        size = len(fixed[0])
        if size < rows:
            fixed = [torch.cat([part, part[-1:].expand(rows - size, *part.shape[1:])]) for part in fixed]
        results.append(function(*fixed)[:size])
    return torch.cat(results)


def by_kind(function: Callable[..., Tensor], *batches: Tensor, kinds: Tensor | None) -> Tensor:
    """`function(*batches)`, evaluated for the rows of each kind apart.

    Args:
        function: Of tensors `[n, ...]`, to `[n, ...]`; row i must depend on row i alone.
        *batches: Tensors `[N, ...]`.
        kinds: What tells the kinds apart, `[N, ...]`; None evaluates all together.

    Returns:
        `[N, ...]`.
    """
    if kinds is None or len(kinds) == 0:
        return function(*batches)
    known, which = kinds.unique(dim=0, return_inverse=True)
    if len(known) == 1:
        return function(*batches)
    places = [(which == kind).nonzero().flatten() for kind in range(len(known))]
    results = torch.cat([function(*(batch[place] for batch in batches)) for place in places])
    return results[torch.cat(places).argsort()]


def pictures_at_once(height: int, width: int, frames: int = 1) -> int:
    """How many pictures, or clips of `frames` at once, of that size in pixels go through one forward.

    A power of two: batches mostly are multiples of one, and filling up a lot is work for nothing.
    """
    most = min(PICTURES_AT_ONCE, max(1, PIXELS_AT_ONCE // (frames * height * width)))
    return 1 << (most.bit_length() - 1)


def texts_at_once(length: int) -> int:
    """How many texts, padded to `length` tokens, are encoded in one forward."""
    return max(1, min(TEXTS_AT_ONCE, TOKENS_AT_ONCE // length))


def painted(decode: Callable[[Tensor], Tensor], finished: Tensor, height: int, width: int) -> list[Sample]:
    """Finished latents or tokens `[B, ...]` as B samples with an `image` `[3, H, W]` float32 in [0, 1].

    Args:
        decode: From n of them to pictures `[n, 3, H, W]` in [-1, 1].
        finished: All of them.
        height: H.
        width: W.
    """

    def shown(finished: Tensor) -> Tensor:
        return (decode(finished).float() / 2).add_(0.5).clamp_(0, 1).cpu()

    pictures = in_fixed_batches(shown, finished, rows=pictures_at_once(height, width))
    # Clones, because a view would carry the whole batch along wherever it is sent.
    return [Sample(image=picture.clone()) for picture in pictures]


def filmed(
    decode: Callable[[Tensor], Tensor], finished: Tensor, frames: int, height: int, width: int
) -> list[Sample]:
    """Finished latents `[B, ...]` as B samples with a `video` `[F, 3, H, W]` uint8.

    Args:
        decode: From n of them to clips `[n, 3, F, H, W]` in [-1, 1].
        finished: All of them.
        frames: How many of the F go through the decoder at once.
        height: H.
        width: W.
    """

    def shown(finished: Tensor) -> Tensor:
        # In bytes at once, and in place: clips in float32 are large, and copies of them larger.
        pixels = decode(finished).float()
        pixels.div_(2).add_(0.5).clamp_(0, 1).mul_(255).round_()
        return pixels.to(torch.uint8).transpose(1, 2).cpu()

    clips = in_fixed_batches(shown, finished, rows=pictures_at_once(height, width, frames))
    return [Sample(video=clip.clone(memory_format=torch.contiguous_format)) for clip in clips]
