"""Which episodes each optimizer step of an iteration takes: epochs, minibatches, and their keyed shuffle."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

import unirl_env.functional as F
from unirl_env.errors import ShapeError

__all__ = ["EpochSettings", "optimizer_steps", "spread"]


class EpochSettings:
    """What the settings of an `AgentConfig` say about its epochs."""

    @property
    def minibatches(self) -> int:
        """N, optimizer steps of an epoch."""
        if self.minibatch_size is None:
            return self.num_minibatches
        return self.episodes // (self.minibatch_size * max(1, self.num_learners))

    @property
    def shuffle(self) -> str | None:
        """What is dealt out anew in every epoch: None, `"group"` or `"episode"`."""
        chosen = self.shuffle_batch_per_epoch
        if chosen is True:
            return "episode" if self.episodes // self.minibatches % self.group_size else "group"
        return chosen or None

    def epochs(self, iteration: int) -> dict[str, Any]:
        """What `share_out` must know of an iteration: its number, and the arguments of `optimizer_steps`."""
        return {
            "iteration": iteration,
            "num_minibatches": self.minibatches,
            "num_epochs": self.num_epochs,
            "shuffle": self.shuffle,
            "seed": F.derive_seed(self.run_seed, "shuffle", iteration),
        }


def optimizer_steps(
    group: Tensor, *, num_minibatches: int, num_epochs: int = 1, shuffle: str | None = None, seed: int = 0
) -> list[Tensor]:
    """The episodes of each optimizer step: every epoch is a pass over all of them.

    A minibatch is a set: its episodes come in ascending order, so that members of a group stay together and
    share what they have in common. The first epoch is shuffled like the others.

    Args:
        group: `[B]`, the group of each episode.
        num_minibatches: N, optimizer steps of an epoch.
        num_epochs: E, passes over the episodes.
        shuffle: What is dealt out anew in each epoch: `"group"`s, `"episode"`s, or None for contiguous parts.
        seed: The key of the shuffle; with the epoch's number it decides everything.

    Returns:
        E x N index tensors `[B / N]` on the CPU.

    Raises:
        ShapeError: If B is not divisible by N, or a border would cut a group that is to stay whole.
    """
    count = len(group)
    if count % num_minibatches:
        raise ShapeError(
            f"An iteration's episodes must divide evenly into {num_minibatches} minibatches, got {count}."
        )
    steps: list[Tensor] = []
    for epoch in range(num_epochs):
        order = _order(group.cpu(), shuffle, F.derive_seed(seed, epoch))
        parts = order.view(num_minibatches, -1)
        if shuffle == "group" and sum(len(group[part].unique()) for part in parts) != len(group.unique()):
            raise ShapeError(
                f"Minibatches of {parts.shape[1]} episodes must hold whole groups to be shuffled by 'group', "
                "got one that a border cuts; try shuffling by 'episode', or another number of minibatches."
            )
        steps += [part.sort().values for part in parts]
    return steps


def spread(steps: Sequence[Tensor], learners: int) -> list[list[Tensor]]:
    """Each learner's even part of every optimizer step.

    Which episodes a step takes does not depend on the number of learners. An episode stays with the learner
    that had it first wherever an even split allows it, so that few travel to more than one.

    Args:
        steps: The episodes of each step `[m]`, m divisible by `learners`.
        learners: L, at least 1.

    Returns:
        For each learner, its episodes of each step `[m / L]`, ascending.
    """
    if learners == 1:
        return [list(steps)]
    held: list[set[int]] = [set() for _ in range(learners)]
    shares: list[list[Tensor]] = [[] for _ in range(learners)]
    for step in steps:
        room = len(step) // learners
        parts: list[list[int]] = [[] for _ in range(learners)]
        others = []
        for episode in step.tolist():
            homes = (i for i in range(learners) if episode in held[i] and len(parts[i]) < room)
            home = next(homes, None)
            (others if home is None else parts[home]).append(episode)
        rest = iter(others)
        for part, mine, share in zip(parts, held, shares, strict=True):
            part += islice(rest, room - len(part))
            mine.update(part)
            share.append(torch.tensor(sorted(part)))
    return shares


def _order(group: Tensor, shuffle: str | None, seed: int) -> Tensor:
    """The episodes in the order in which they are dealt out."""
    if shuffle is None:
        return torch.arange(len(group))
    generator = torch.Generator().manual_seed(seed)
    if shuffle == "episode":
        return torch.randperm(len(group), generator=generator)
    groups, member = group.unique(return_inverse=True)
    return torch.randperm(len(groups), generator=generator)[member].argsort(stable=True)
