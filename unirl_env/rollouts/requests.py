"""How an iteration's episodes are asked for: whole groups, in contiguous shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from unirl_env.types import Prompt

__all__ = ["rollout_requests"]


def rollout_requests(
    prompts: Sequence[Prompt], group_size: int, *, shares: int, **common: Any
) -> list[dict[str, Any]]:
    """Arguments of `GenerativeEnvRunner.collect`, one request per runner.

    A prompt that occurs again gets further sample ids, and groups are numbered by their place: neither noise
    nor groups depend on how many runners there are.

    Args:
        prompts: P prompts.
        group_size: G, episodes per prompt.
        shares: How many runners there are; 0 counts as 1.
        **common: What every request says alike.
    """
    seen: Counter[str] = Counter()
    offsets = []
    for prompt in prompts:
        offsets.append(seen[prompt.id] * group_size)
        seen[prompt.id] += 1
    shares = min(max(1, shares), len(prompts))
    bounds = [len(prompts) * share // shares for share in range(shares + 1)]
    return [
        {
            "prompts": list(prompts[start:stop]),
            "sample_offset": offsets[start:stop],
            "first_group": start,
            "group_size": group_size,
            **common,
        }
        for start, stop in pairwise(bounds)
    ]
