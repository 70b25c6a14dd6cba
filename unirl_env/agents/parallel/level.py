"""As many forward passes on every learner: where weights are gathered for each, none may stay away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from unirl_env.agents.kinds import KINDS
from unirl_env.agents.rows import Rows, Shard
from unirl_env.functional import SDEStep

Minibatch = dict[str, Sequence[Tensor]]
"""The micro-batches of one optimizer step: by phase, the episodes `[b]` of each."""


def level(minibatches: Sequence[Minibatch], device: torch.device) -> list[Minibatch]:
    """The micro-batches of every optimizer step and phase, filled up with empty ones where others have more.

    Args:
        minibatches: Of the optimizer steps, the same number with the same phases on every learner.
        device: Where learners exchange tensors.
    """
    names = list(minibatches[0]) if minibatches else []
    counts = torch.tensor([[len(each[name]) for name in names] for each in minibatches], device=device)
    dist.all_reduce(counts, op=dist.ReduceOp.MAX)
    none = torch.empty(0, dtype=torch.int64)
    return [
        {
            name: [*each[name], *[none] * (wanted - len(each[name]))]
            for name, wanted in zip(names, row, strict=True)
        }
        for each, row in zip(minibatches, counts.tolist(), strict=True)
    ]


def any_learner(found: bool, device: torch.device) -> bool:
    """Whether it is found on any learner; all must ask."""
    told = torch.tensor(float(found), device=device)
    dist.all_reduce(told, op=dist.ReduceOp.MAX)
    return bool(told > 0)


def idle_rows(shard: Shard, name: str, denominator: float) -> Rows:
    """Rows of a phase that count nothing in any loss, for the forward pass of an empty micro-batch.

    Args:
        shard: On the learner's device, of at least one episode.
        name: Of the phase.
        denominator: Of the optimizer step.
    """
    first = torch.zeros(1, dtype=torch.int64, device=shard.group.device)
    phase = shard.phases[name].select(first)
    mask = torch.zeros_like(phase.mask)
    if KINDS[phase.kind].step is not SDEStep:
        mask[:, 0] = True  # what is masked is no row there
    one = replace(
        shard,
        phases={name: replace(phase, mask=mask)},
        group=shard.group[:1],
        episode_seed=shard.episode_seed[:1],
        advantages={name: torch.zeros_like(shard.advantages[name][:1])},
        weights={name: torch.zeros_like(shard.weights[name][:1])},
        kl_scales={key: torch.zeros_like(scale[:1]) for key, scale in shard.kl_scales.items()},
    )
    return KINDS[phase.kind].rows(one, name, first, denominator)
