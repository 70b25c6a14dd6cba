"""Which learner takes which episodes of an optimizer step: all are to be done at the same time.

Which episodes a step takes, and what it divides by, does not depend on who takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from unirl_env.episode import Phase
from unirl_env.policies.packing import sequence_lengths

EVEN = 1.05
"""How much of the mean the busiest learner may have before episodes leave their order."""

Parts = list[list[int]]
"""The episodes of each learner."""


@dataclass(frozen=True)
class Work:
    """What a learner has to read for each of B episodes.

    Attributes:
        own: `[B]` int64, for the episode alone.
        shared: `[B]` int64, once for all episodes of its group that one learner has: their prompt.
        group: `[B]` int64.
        apart: Whether the episodes of a group may go to several learners though others are even enough.
    """

    own: Tensor
    shared: Tensor
    group: Tensor
    apart: bool = True

    def of(self, episodes: Sequence[int]) -> int:
        """Of episodes that one learner has."""
        index = torch.tensor(episodes, dtype=torch.int64)
        prompts = dict(zip(self.group[index].tolist(), self.shared[index].tolist(), strict=True))
        return int(self.own[index].sum()) + sum(prompts.values())


def work_of(phases: Mapping[str, Phase], group: Tensor) -> Work:
    """The work of B episodes, by their sizes.

    Tokens count one each, those of the world included, and a prompt counts once for the episodes of a group,
    as networks that branch read it. Whatever else is acted counts as many as an action has numbers: of
    latents that is more than a network reads, so that beside texts their number decides. What is masked in
    all steps counts nothing.

    Args:
        phases: The trained ones; of large tensors, shapes will do.
        group: `[B]` int64.
    """
    own, shared = torch.zeros(2, len(group), dtype=torch.int64)
    for phase in phases.values():
        rows = phase.mask.sum(1).cpu()
        if phase.kind != "tokens" or "prompt_length" not in phase.context:
            own += rows * phase.elements
            continue
        assert phase.context_row is not None
        read = sequence_lengths(phase).cpu() * (rows > 0)
        prompt = phase.context["prompt_length"][phase.context_row].cpu() * (rows > 0)
        own += read - prompt
        shared += prompt
    # Latents are kept by groups: whoever takes one of them has to fetch all.
    return Work(own, shared, group.cpu(), all(phase.kind != "latents" for phase in phases.values()))


def spread(steps: Sequence[Tensor], learners: int, work: Work) -> list[list[Tensor]]:
    """Each learner's part of every optimizer step.

    Episodes stay in their order, the same number for each learner, where that is even enough (`EVEN`).
    Elsewhere whole groups go, the longest first, each to the learner that has least; and if those are too
    few, single episodes. An episode stays with a learner that had it before where there is room, so that few
    travel to more than one.

    Args:
        steps: The episodes of each step `[m]`, m divisible by `learners`.
        learners: L, at least 1.
        work: Of all episodes.

    Returns:
        For each learner, its episodes of each step, ascending; none is without while another has two.
    """
    if learners == 1:
        return [list(steps)]
    homes: dict[int, set[int]] = {}
    shares: list[list[Tensor]] = [[] for _ in range(learners)]
    for step in steps:
        parts = _dealt(step.tolist(), learners, work, homes)
        for number, (part, share) in enumerate(zip(parts, shares, strict=True)):
            for episode in part:
                homes.setdefault(episode, set()).add(number)
            share.append(torch.tensor(sorted(part)))
    return shares


def _dealt(step: Sequence[int], learners: int, work: Work, homes: Mapping[int, set[int]]) -> Parts:
    """The first way that is even enough, else that whose busiest learner has least."""
    least = work.of(step) / learners
    groups: dict[int, list[int]] = {}
    for episode, group in zip(step, work.group[list(step)].tolist(), strict=True):
        groups.setdefault(group, []).append(episode)

    def longest_first(items: Sequence[Sequence[int]]) -> Callable[[], Parts]:
        return lambda: _longest_first(items, learners, work, homes, least)

    ways = [lambda: _in_order(step, learners, homes), longest_first(list(groups.values()))]
    if work.apart:
        ways.append(longest_first([[episode] for episode in step]))
    best: tuple[int, Parts] | None = None
    for way in ways:
        parts = way()
        if not all(parts):
            continue
        busiest = max(map(work.of, parts))
        if best is None or busiest < best[0]:
            best = busiest, parts
        if busiest <= EVEN * least:
            break
    assert best is not None  # in order, all have the same number
    return best[1]


def _in_order(step: Sequence[int], learners: int, homes: Mapping[int, set[int]]) -> Parts:
    """The same number for each."""
    room = len(step) // learners
    parts: Parts = [[] for _ in range(learners)]
    others: list[int] = []
    for episode in step:
        home = next((i for i in sorted(homes.get(episode, ())) if len(parts[i]) < room), None)
        (others if home is None else parts[home]).append(episode)
    rest = iter(others)
    for part in parts:
        part += islice(rest, room - len(part))
    return parts


def _longest_first(
    items: Sequence[Sequence[int]],
    learners: int,
    work: Work,
    homes: Mapping[int, set[int]],
    mean: float,
) -> Parts:
    """Each of `items`, episodes of one group, to the learner that then has least."""
    own = [int(work.own[list(item)].sum()) for item in items]
    shared, group = ([int(values[item[0]]) for item in items] for values in (work.shared, work.group))
    loads, counts = np.zeros((2, learners), dtype=np.int64)
    fresh = {each: np.ones(learners, dtype=bool) for each in group}
    """By group, which learners have none of it."""
    parts: Parts = [[] for _ in range(learners)]
    for i in sorted(range(len(items)), key=lambda i: -own[i] - shared[i]):
        after = loads + own[i] + shared[i] * fresh[group[i]]
        home = next((j for j in sorted(homes.get(items[i][0], ())) if after[j] <= mean), None)
        chosen = int((after * (len(items) + 1) + counts).argmin()) if home is None else home
        loads[chosen], fresh[group[i]][chosen] = after[chosen], False
        counts[chosen] += 1
        parts[chosen] += items[i]
    return parts
