"""Two-digit sums, for the embedded Qwen3 to learn.

A tenth of them is held out: pre-training never sees those, not even the other way round.
"""

from __future__ import annotations

import numpy as np

__all__ = ["Pair", "direct_prompt", "split_sums", "tool_prompt"]

Pair = tuple[int, int]


def split_sums(seed: int = 0) -> tuple[list[Pair], list[Pair]]:
    """All pairs of two-digit numbers in two lists, nine tenths to train on and one tenth held out.

    A pair and its reverse are always on the same side. Both lists are shuffled.
    """
    rng = np.random.default_rng(seed)
    unordered = [(a, b) for a in range(10, 100) for b in range(a, 100)]
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for place, index in enumerate(rng.permutation(len(unordered))):
        a, b = unordered[index]
        sides[place < len(unordered) // 10].extend({(a, b), (b, a)})
    for side in sides:
        side.sort()
        rng.shuffle(side)
    return [(int(a), int(b)) for a, b in sides[0]], [(int(a), int(b)) for a, b in sides[1]]


def direct_prompt(pair: Pair) -> str:
    """The question for a sum."""
    return f"{pair[0]}+{pair[1]}=?"


def tool_prompt(pair: Pair) -> str:
    """The question for a sum that may be answered by a calculator."""
    return f"calc {pair[0]}+{pair[1]}"
