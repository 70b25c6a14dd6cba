"""How an iteration's episodes are shared out: minibatches, learners, micro-batches, rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unirl_env.episode import EpisodeBatch, Phase
from unirl_env.errors import ShapeError

__all__ = ["Rows", "Shard", "micro_batches", "share_out", "take_rows"]


@dataclass(frozen=True)
class Shard:
    """One learner's share of an iteration.

    Attributes:
        batch: Its episodes, those of the first minibatch first.
        advantages: `[b]` float32, one per episode.
        bounds: Where each of the N minibatches begins and, last, where the final one ends.
        denominators: Per minibatch and phase, how many transitions are trained on by all learners together.
    """

    batch: EpisodeBatch
    advantages: Tensor
    bounds: tuple[int, ...]
    denominators: tuple[Mapping[str, float], ...]

    def to(self, device: torch.device | str) -> Shard:
        """The same share on `device`."""
        return replace(self, batch=self.batch.to(device), advantages=self.advantages.to(device))


@dataclass(frozen=True)
class Rows:
    """N transitions of a micro-batch, flat over episodes and steps: what a loss sees besides the new step.

    Attributes:
        observation: Inputs of the policy, each `[N, ...]`.
        action: `[N, ...]`.
        old_log_prob: `[N]` under the policy that acted.
        old_mean: `[N, ...]`, or None where the loss asks for none.
        advantages: `[N]`.
        mask: `[N]` bool, which rows are trained on.
        denominator: What sums over rows are divided by; it counts the minibatch of all learners.
    """

    observation: Mapping[str, Tensor]
    action: Tensor
    old_log_prob: Tensor
    old_mean: Tensor | None
    advantages: Tensor
    mask: Tensor
    denominator: float


def share_out(
    batch: EpisodeBatch, advantages: Tensor, *, num_minibatches: int, num_learners: int
) -> list[Shard]:
    """Cut the episodes into contiguous minibatches, and each of them evenly between the learners.

    The transitions of an episode whose score is invalid are masked out. A context that several episodes
    share travels to a learner once.

    Args:
        batch: B episodes.
        advantages: `[B]`.
        num_minibatches: N, optimizer steps.
        num_learners: L; 0 counts as 1.

    Raises:
        ShapeError: If B is not divisible by N x L.
    """
    learners = max(1, num_learners)
    if len(batch) % (num_minibatches * learners):
        raise ShapeError(
            f"An iteration's episodes must divide evenly into {num_minibatches} minibatches x {learners} "
            f"learners, got {len(batch)}."
        )
    phases = {name: _without(phase, ~batch.scores.valid) for name, phase in batch.phases.items()}
    batch = replace(batch, phases=phases, samples=None)
    minibatches = torch.arange(len(batch)).view(num_minibatches, learners, -1)
    masks = {name: phase.mask.cpu() for name, phase in phases.items()}
    denominators = tuple(
        {name: float(mask[episodes.flatten()].sum()) for name, mask in masks.items()}
        for episodes in minibatches
    )
    size = minibatches.shape[-1]
    bounds = tuple(range(0, num_minibatches * size + 1, size))
    if learners == 1:
        return [Shard(batch, advantages, bounds, denominators)]
    return [
        Shard(batch.select(index), advantages[index], bounds, denominators)
        for index in minibatches.transpose(0, 1).reshape(learners, -1)
    ]


def micro_batches(
    mask: Tensor, advantages: Tensor, *, start: int, stop: int, size: int | None, skip_idle: bool
) -> list[Tensor]:
    """The episodes `[start, stop)` in lots of at most `size`, without those that have nothing to say.

    Args:
        mask: `[b, S]` bool.
        advantages: `[b]`.
        start: The minibatch's first episode.
        stop: One past its last.
        size: Episodes per lot; None takes all at once.
        skip_idle: Leave out episodes of advantage 0 too. Their gradient is exactly 0, as long as no other
            term of the loss touches them; they stay in the denominator.
    """
    busy = mask[start:stop].any(dim=1)
    if skip_idle:
        busy = busy & (advantages[start:stop] != 0)
    index = torch.nonzero(busy).flatten() + start
    if not len(index):
        return []
    return list(index.split(size or len(index)))


def take_rows(phase: Phase, advantages: Tensor, index: Tensor, denominator: float) -> Rows:
    """The rows of the episodes at `index` `[b]`: b x S of them."""
    steps = phase.log_prob.shape[1]
    observation, action = phase.rows(index)
    return Rows(
        observation=observation,
        action=action,
        old_log_prob=phase.log_prob[index].flatten(),
        old_mean=None if phase.mean is None else phase.mean[index].flatten(0, 1),
        advantages=advantages[index].repeat_interleave(steps),
        mask=phase.mask[index].flatten(),
        denominator=denominator,
    )


def _without(phase: Phase, gone: Tensor) -> Phase:
    """The phase with the transitions of the episodes `gone` `[B]` masked out."""
    if not gone.any():
        return phase
    return replace(phase, mask=phase.mask & ~gone.to(phase.mask.device)[:, None])
