"""How an iteration's episodes are asked for: whole groups in contiguous shares, and then one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from unirl_env.errors import ConfigError
from unirl_env.types import Prompt

__all__ = ["EpisodeRequest", "list_episodes", "rollout_requests"]


@dataclass(frozen=True)
class EpisodeRequest:
    """One episode to come.

    Attributes:
        prompt: What it answers.
        sample: Which of the prompt's samples it is; keys its noise.
        group: The number of its group.
    """

    prompt: Prompt
    sample: int
    group: int


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


def list_episodes(
    prompts: Sequence[Prompt],
    group_size: int,
    sample_offset: Sequence[int] | None = None,
    first_group: int = 0,
) -> list[EpisodeRequest]:
    """The episodes one by one, so that a batch need not end where a group does.

    Args:
        prompts: P prompts.
        group_size: G, episodes per prompt.
        sample_offset: `[P]`, the sample id of each group's first episode; None counts occurrences.
        first_group: The number of the first group.

    Returns:
        P x G episodes, in the order of the prompts.

    Raises:
        ConfigError: If there is nothing to play, or `sample_offset` does not fit the prompts.
    """
    if not prompts or group_size < 1:
        raise ConfigError(
            "`prompts` and `group_size` must ask for an episode at least, got "
            f"{len(prompts)} prompts and group_size={group_size}."
        )
    if sample_offset is not None and len(sample_offset) != len(prompts):
        raise ConfigError(
            f"`sample_offset` must hold one number per prompt, {len(prompts)}, got {len(sample_offset)}."
        )
    if sample_offset is None:
        seen: Counter[str] = Counter()
        sample_offset = []
        for prompt in prompts:
            sample_offset.append(seen[prompt.id])
            seen[prompt.id] += group_size
    return [
        EpisodeRequest(prompt, int(offset) + i, first_group + number)
        for number, (prompt, offset) in enumerate(zip(prompts, sample_offset, strict=True))
        for i in range(group_size)
    ]
