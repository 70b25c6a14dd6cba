"""How an iteration's episodes are shared out: minibatches and learners."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.epochs import optimizer_steps, spread
from unirl_env.episode import EpisodeBatch, Phase
from unirl_env.errors import ShapeError

__all__ = ["Shard", "share_out"]


@dataclass(frozen=True)
class Shard:
    """One learner's share of an iteration.

    Attributes:
        batch: The episodes that it ever takes, each once.
        advantages: Per phase `[b]` float32, one per episode.
        steps: For each optimizer step, which of the episodes it takes, ascending.
        weights: Per phase `[b]` float32, what each transition of an episode counts.
        denominators: Per optimizer step and phase, what weighted sums are divided by; counts all learners'
            shares.
        iteration: The iteration's number, from 0.
    """

    batch: EpisodeBatch
    advantages: Mapping[str, Tensor]
    steps: tuple[Tensor, ...]
    weights: Mapping[str, Tensor]
    denominators: tuple[Mapping[str, float], ...]
    iteration: int = 0

    def to(self, device: torch.device | str) -> Shard:
        """The same share on `device`."""
        return replace(
            self,
            batch=self.batch.to(device),
            advantages={name: each.to(device) for name, each in self.advantages.items()},
            weights={name: weight.to(device) for name, weight in self.weights.items()},
        )


def share_out(
    batch: EpisodeBatch,
    advantages: Mapping[str, Tensor],
    valid: Mapping[str, Tensor] | None = None,
    *,
    num_minibatches: int,
    num_learners: int,
    num_epochs: int = 1,
    shuffle: str | None = None,
    seed: int = 0,
    aggregate: str = "token_mean",
    horizon: int | None = None,
    mask_truncated: bool = False,
    idle_episodes: str = "count",
    iteration: int = 0,
) -> list[Shard]:
    """Cut the episodes into minibatches in every epoch, and each minibatch evenly between the learners.

    The transitions of an episode whose score is invalid are masked out. An episode travels to a learner once,
    whatever the number of epochs, and so does a context that several episodes share. Phases without
    advantages are not trained and stay behind.

    Args:
        batch: B episodes.
        advantages: Of each trained phase, `[B]`.
        valid: Of each trained phase, `[B]` bool, where its advantages mean something; None where scores do.
        num_minibatches: N, optimizer steps of an epoch.
        num_learners: L; 0 counts as 1.
        num_epochs: E, passes over the episodes; see `optimizer_steps` for this and the next two.
        shuffle: None, `"group"` or `"episode"`.
        seed: The key of the shuffle.
        aggregate: How transitions of episodes of unequal length are weighed; see `F.token_weights`.
        horizon: For `aggregate="horizon"`.
        mask_truncated: Leave out episodes that the length limit ended, too.
        idle_episodes: "count" keeps episodes of advantage 0 in the denominators; "leave_out" leaves them out
            of the phase as if they had not been drawn.
        iteration: The iteration's number, from 0.

    Raises:
        ShapeError: If B is not divisible by N x L, or a minibatch cannot hold whole groups and should.
    """
    learners = max(1, num_learners)
    if len(batch) % (num_minibatches * learners):
        raise ShapeError(
            f"An iteration's episodes must divide evenly into {num_minibatches} minibatches x {learners} "
            f"learners, got {len(batch)}."
        )
    gone = ~batch.scores.valid
    if mask_truncated and batch.truncated is not None:
        gone = gone | batch.truncated.cpu()
    phases = {
        name: _without(phase, gone if valid is None else gone | ~valid[name])
        for name, phase in batch.phases.items()
        if name in advantages
    }
    if idle_episodes == "leave_out":
        phases = {name: _without(phase, advantages[name].cpu() == 0) for name, phase in phases.items()}
    advantages = {name: advantages[name] for name in phases}
    batch = replace(batch, phases=phases, samples=None)
    steps = optimizer_steps(
        batch.group, num_minibatches=num_minibatches, num_epochs=num_epochs, shuffle=shuffle, seed=seed
    )
    weights = {name: torch.ones(len(batch)) for name in phases}
    denominators: list[dict[str, float]] = [{} for _ in steps]
    for name, phase in phases.items():
        lengths = phase.mask.cpu().sum(1)
        for number, index in enumerate(steps):
            weights[name][index], denominators[number][name] = F.token_weights(
                lengths[index], aggregate if phase.ragged else "token_mean", horizon
            )
    if learners == 1:
        return [Shard(batch, advantages, tuple(steps), weights, tuple(denominators), iteration)]
    shards = []
    for share in spread(steps, learners):
        index = torch.cat(share).unique()
        shards.append(
            Shard(
                batch.select(index),
                {name: each[index] for name, each in advantages.items()},
                tuple(torch.searchsorted(index, part) for part in share),
                {name: weight[index] for name, weight in weights.items()},
                tuple(denominators),
                iteration,
            )
        )
    return shards


def _without(phase: Phase, gone: Tensor) -> Phase:
    """The phase with the transitions of the episodes `gone` `[B]` masked out."""
    if not gone.any():
        return phase
    return replace(phase, mask=phase.mask & ~gone.to(phase.mask.device)[:, None])
