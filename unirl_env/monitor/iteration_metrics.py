"""Numbers of an iteration's episodes: of their scores, and how different the samples of one group are.

Diversity is what a policy gives up first when it exploits its reward. Every measure of it lies in [0, 1]: 0
where all samples of a group are the same. Different measures are not to be compared with each other; what
counts is how one of them moves in the course of a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from unirl_env.arguments.values import is_number
from unirl_env.episode import EpisodeBatch
from unirl_env.rewards.scoring import score_safely
from unirl_env.types import Sample, Scorer, Scores

HELDOUT = "heldout"
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


def score_metrics(name: str, scores: Scores) -> dict[str, float]:
    """The numbers of a batch of scores under `name`; NaN where there is nothing to average.

    Args:
        name: What the scores are: `reward` or `heldout`.
        scores: B scores.

    Returns:
        `<name>` and `<name>_std`, over valid scores; `<name>/failed`, how many are invalid. Of each part,
        `<name>/<part>` and `<name>_std/<part>`, over the values that it has; `<name>_failed/<part>`, how many
        it lacks where the whole is invalid, too, and `<name>_absent/<part>`, how many it lacks where the
        whole is valid: there the part does not apply, or is only watched and failed.
    """
    value, valid = scores.value[scores.valid], scores.valid
    found = {name: _mean(value), f"{name}_std": _std(value), f"{name}/failed": float((~valid).sum())}
    for part, values in scores.parts.items():
        known = torch.isfinite(values)
        found[f"{name}/{part}"] = _mean(values[known])
        found[f"{name}_std/{part}"] = _std(values[known])
        found[f"{name}_failed/{part}"] = float((~known & ~valid).sum())
        found[f"{name}_absent/{part}"] = float((~known & valid).sum())
    return found


def heldout_metrics(scorer: Scorer, batch: EpisodeBatch) -> dict[str, float]:
    """What a scorer that is never trained on says of the very samples of an iteration.

    Args:
        scorer: The held-out scorer; its failures are counted and stop nothing.
        batch: The iteration's episodes with their samples.

    Returns:
        `score_metrics` under `heldout`, and `seconds/heldout`; nothing where no samples were kept.
    """
    if not batch.samples:
        return {}
    began = time.perf_counter()
    found = score_metrics(HELDOUT, score_safely(scorer, batch.samples, batch.prompts))
    return found | {"seconds/heldout": time.perf_counter() - began}


def nothing_scored(row: Mapping[str, Any]) -> bool:
    """Whether an iteration of these numbers had episodes, and no valid score of any."""
    failed = row.get("reward/failed")
    return not is_number(row.get("reward")) and is_number(failed) and failed > 0


def is_due(iteration: int, every: int) -> bool:
    """Whether an iteration, counted from 1, is one of those that are scored: the first, and every `every`."""
    return every > 0 and (iteration - 1) % every == 0


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _std(values: Tensor) -> float:
    return float(values.std(unbiased=False)) if len(values) else float("nan")


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
        value = _mean_of_groups(
            [[sample for sample in members if has(sample)] for members in groups], measure
        )
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


def _mean_of_groups(groups: Sequence[Sequence[Sample]], measure: Measure) -> float | None:
    values = [measure(members) for members in groups if len(members) > 1]
    return sum(values) / len(values) if values else None


def _pictures(samples: Sequence[Sample]) -> float:
    images = [sample.image for sample in samples[:MOST] if sample.image is not None]
    if len({image.shape for image in images}) == 1:
        return far_apart(_small(torch.stack([_thinned(image) for image in images])).flatten(1))
    return far_apart(torch.cat([_small(_thinned(image)[None]).flatten(1) for image in images]))


def _videos(samples: Sequence[Sample]) -> float:
    videos = [sample.video for sample in samples[:MOST] if sample.video is not None]
    frames = [_small(_thinned(_some_frames(video))) / _white(video) for video in videos]
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


def _white(pixels: Tensor) -> float:
    return 255.0 if pixels.dtype == torch.uint8 else 1.0


def _some_frames(video: Tensor) -> Tensor:
    last = len(video) - 1
    return video[[round(i * last / (FRAMES - 1)) for i in range(FRAMES)]]
