"""Old log-probs and means by the learner itself, before the first step of an iteration changes a weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unirl_env.agents.loss import Loss
from unirl_env.agents.phases import Step
from unirl_env.agents.rows import Rows
from unirl_env.agents.shards import Shard

__all__ = ["Lots", "replayed"]

Lots = Mapping[str, Sequence[Tensor]]
"""The micro-batches of one optimizer step: by phase, the episodes `[b]` of each."""


@torch.no_grad()
def replayed(
    shard: Shard,
    steps: Sequence[Lots],
    losses: Mapping[str, Loss],
    score: Callable[[Shard, str, Tensor], tuple[Rows, Step]],
) -> Shard:
    """The shard with old log-probs and means taken anew, in the lots in which training first uses them.

    A forward pass of another batch size may differ in the last bits; of the same size it does not. Where
    episodes are shuffled, lots of later epochs are others, and differ from the anchor by such bits, too. What
    no loss looks at stays as it was recorded.

    Args:
        shard: The learner's share.
        steps: The micro-batches of each optimizer step.
        losses: By kind of phase.
        score: `(shard, phase, episodes) -> ` their rows, and these scored.
    """
    phases = {}
    for name, phase in shard.batch.phases.items():
        loss = losses[phase.kind]
        if not (loss.scores or "mean" in loss.needs):
            phases[name] = phase
            continue
        log_prob = phase.log_prob.clone()
        mean = torch.zeros_like(phase.action, dtype=torch.float32) if "mean" in loss.needs else None
        known = torch.zeros(len(phase), dtype=torch.bool)
        for index in (index for lots in steps for index in lots[name]):
            index = index[~known[index]]
            if not len(index):
                continue
            known[index] = True
            rows, old = score(shard, name, index)
            log_prob[rows.episode, rows.step] = old.log_prob
            if mean is not None:
                mean[rows.episode, rows.step] = old.mean
        phases[name] = replace(phase, log_prob=log_prob, mean=mean)
    return replace(shard, batch=replace(shard.batch, phases=phases))
