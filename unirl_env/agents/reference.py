"""What each step of finished episodes pays for leaving the untrained model, taken before credit is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
import torch
import torch.distributed as dist
from torch import Tensor

from unirl_env.agents.kinds import KINDS, micro_batches_of
from unirl_env.agents.loss import Context
from unirl_env.agents.rows import Shard


@torch.no_grad()
def reference_kls(learner: Any, shard: Shard) -> dict[str, Tensor]:
    """The KL of each step to the untrained model, at the visited states, under the policy that sampled.

    Args:
        learner: The learner, whose weights are those that sampled.
        shard: Whole episodes.

    Returns:
        By phase `[b, S]` float32 on the CPU, in nats of whole actions: exact on latents; elsewhere the
        difference of log-probs of what was sampled, at most `max_log_ratio` (with `top_p` the untrained model
        may exclude it); 0 where masked.
    """
    config, actor = learner.config, learner.policy.actor
    branching = frozenset(name for name in shard.phases if actor.branches(name))
    shard = replace(shard.to(learner.device), branching=branching)
    found = {}
    for name, phase in shard.phases.items():
        kind = KINDS[phase.kind]
        context = Context(learner.policy, config, phase=name, kind=phase.kind)
        recorded = config.old_log_probs == "rollout" and (phase.mean is not None or not kind.per_element)
        kl = torch.zeros_like(phase.log_prob, dtype=torch.float32)
        here = phase.mask.any(1).nonzero()[:, 0].cpu() if phase.drawn else torch.empty(0, dtype=torch.int64)
        for index in micro_batches_of(learner, name, phase, here):
            rows = kind.rows(shard, name, index.to(learner.device), 1.0)
            new = None if recorded else context.score(rows.observation, rows.action)
            with context.weights("reference"):
                reference = context.score(rows.observation, rows.action)
            assert kind.nats is not None  # `check_step_credit` has seen to it
            nats = kind.nats(new, reference, rows)
            if not kind.per_element:
                nats = nats.clamp(-config.max_log_ratio, config.max_log_ratio)
            kl[rows.episode, rows.step] = torch.where(rows.mask, nats, 0.0)
        found[name] = kl.cpu()
    return found


def own_reference_kls(learner: Any, shards: Sequence[Any]) -> tuple[int, dict[str, Tensor]]:
    """`reference_kls` of this learner's share: of `shards`, or of references to them, the one at its rank.

    Returns:
        The rank, and what was found.
    """
    place = dist.get_rank() if learner.distributed else 0
    shard = shards[place]
    shard = ray.get(shard) if isinstance(shard, ray.ObjectRef) else shard
    with learner.policy.actor.under(learner.config.rollout_weights):
        return place, reference_kls(learner, shard)
