"""How different the samples of one group are: what a policy gives up first when it exploits its reward.

Every measure lies in [0, 1]: 0 where all samples of a group are the same. Different measures are not to be
compared with each other; what counts is how one of them moves in the course of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from unirl_env.types import Sample

__all__ = ["diversity", "far_apart", "text_diversity"]

SIDE = 16
"""Pictures are compared at this many pixels a side: what they show, and not their grain."""
LARGEST = 128
"""Of a larger picture, every k-th row and column are looked at before it is scaled down."""
FRAMES = 4
"""Frames of a video that are compared."""
MOST = 64
"""Of a larger group, the first ones are compared, except of texts."""
AT_ONCE = 1 << 22
"""Numbers that are compared at once."""
WORD = 1 << 31
"""Above every token: a pair of tokens is written as one number."""

Measure = Callable[[Sequence[Sample]], float]


def diversity(samples: Sequence[Sample], group: Tensor) -> dict[str, float]:
    """How different the samples of a group are, averaged over groups.

    Args:
        samples: The B finished samples of an iteration.
        group: `[B]` int64, which group each belongs to.

    Returns:
        `diversity`, of what the samples come to in the end: pictures or videos, else texts, else latents; of
        texts with a picture, `diversity/text`, too. A measure is left out where no group holds two samples
        of its kind.

        - Pictures: mean distance of two of them, the root of the mean squared difference of their colours in
          [0, 1] after scaling down to 16 x 16. Two pictures of unrelated noise around grey have a small one.
        - Videos: likewise, over four frames of each.
        - Texts: share of pairs of neighbouring tokens (of characters, where tokens are unknown) that one text
          does not share with another; see `text_diversity`.
        - Latents: mean of `|a - b| / (|a| + |b|)` over two of them, where all have one shape.
    """
    groups = [[samples[i] for i in torch.nonzero(group == number).flatten()] for number in group.unique()]
    shapes = {tuple(sample.latent.shape) for sample in samples if sample.latent is not None}
    found: dict[str, float] = {}
    measures: tuple[tuple[Measure, Callable[[Sample], bool]], ...] = (
        (_pictures, lambda sample: sample.image is not None),
        (_videos, lambda sample: sample.video is not None),
        (_texts, lambda sample: sample.tokens is not None or sample.text is not None),
        (_latents, lambda sample: sample.latent is not None and len(shapes) == 1),
    )
    for measure, has in measures:
        value = _mean([[sample for sample in members if has(sample)] for members in groups], measure)
        if value is None:
            continue
        if "diversity" not in found:
            found["diversity"] = value
        elif measure is _texts:
            found["diversity/text"] = value
    return found


def far_apart(rows: Tensor) -> float:
    """Mean over pairs of the root of the mean squared difference of two rows of `[n, d]`, n at least 2."""
    return _mean_of_pairs(_distances(rows)) / rows.shape[1] ** 0.5


def text_diversity(texts: Sequence[Sequence[int] | np.ndarray]) -> float:
    """How little the texts of a group have in common.

    Each text is the set of its pairs of neighbouring signs, its beginning and its end being signs, too. Two
    texts with sets `A` and `B` have `2 |A and B| / (|A| + |B|)` in common (Dice's coefficient); over a group,
    numerators and denominators are summed over all pairs of texts, which takes one count of every pair of
    signs and no comparison of texts.

    Args:
        texts: n sequences of non-negative numbers below 2^31 - 2, n at least 2.

    Returns:
        1 minus what they have in common: 0 if all are the same, 1 if no two share anything.

    Reference:
        Dice, "Measures of the amount of ecologic association between species" (1945); after the distinct
        n-grams of Li et al., arXiv:1510.03055.
    """
    sets = [_neighbours(text) for text in texts]
    _, count = np.unique(np.concatenate(sets), return_counts=True)
    shared = float((count * (count - 1)).sum())
    return 1.0 - shared / ((len(sets) - 1) * sum(map(len, sets)))


def _neighbours(text: Sequence[int] | np.ndarray) -> np.ndarray:
    signs = np.concatenate([[0], np.asarray(text, dtype=np.int64) + 2, [1]]).astype(np.int64)
    return np.unique(signs[:-1] * WORD + signs[1:])


def _mean(groups: Sequence[Sequence[Sample]], measure: Measure) -> float | None:
    values = [measure(members) for members in groups if len(members) > 1]
    return sum(values) / len(values) if values else None


def _pictures(samples: Sequence[Sample]) -> float:
    images = [sample.image for sample in samples[:MOST] if sample.image is not None]
    if len({image.shape for image in images}) == 1:
        return far_apart(_small(torch.stack([_thinned(image) for image in images])).flatten(1))
    return far_apart(torch.cat([_small(_thinned(image)[None]).flatten(1) for image in images]))


def _videos(samples: Sequence[Sample]) -> float:
    videos = [sample.video for sample in samples[:MOST] if sample.video is not None]
    frames = [_small(_thinned(_some_frames(video))) for video in videos]
    return far_apart(torch.stack([frame.flatten() for frame in frames]))


def _texts(samples: Sequence[Sample]) -> float:
    tokens = [sample.tokens.cpu().numpy() for sample in samples if sample.tokens is not None]
    if len(tokens) == len(samples):
        return text_diversity(tokens)
    return text_diversity([[ord(sign) for sign in sample.text or ""] for sample in samples])


def _latents(samples: Sequence[Sample]) -> float:
    latents = [sample.latent for sample in samples[:MOST] if sample.latent is not None]
    rows = torch.stack([latent.float().flatten() for latent in latents])
    size = rows.norm(dim=1)
    sums = (size[:, None] + size[None]).clamp(min=torch.finfo(torch.float32).tiny)
    return _mean_of_pairs(_distances(rows) / sums)


def _distances(rows: Tensor) -> Tensor:
    # Differences, and not products as in fast distances: of two rows that are the same, exactly 0.
    chunk = max(1, AT_ONCE // rows.numel())
    return torch.cat([(part[:, None] - rows[None]).norm(dim=2) for part in rows.split(chunk)])


def _mean_of_pairs(table: Tensor) -> float:
    return float(table.sum()) / (len(table) * (len(table) - 1))


def _thinned(pixels: Tensor) -> Tensor:
    """Of pixels `[..., H, W]`, so many that they are still more than enough."""
    height, width = (max(1, size // LARGEST) for size in pixels.shape[-2:])
    return pixels[..., ::height, ::width]


def _small(frames: Tensor) -> Tensor:
    """Frames `[F, 3, H, W]` at `SIDE` pixels a side."""
    return nnf.adaptive_avg_pool2d(frames.float(), SIDE)


def _some_frames(video: Tensor) -> Tensor:
    last = len(video) - 1
    return video[[round(i * last / (FRAMES - 1)) for i in range(FRAMES)]]
