"""Episodes that stay with whoever played them, until whoever learns from them takes its own.

Between players and learners stands the driver, which gives credit. It needs scores, groups and what a step's
noise was, and no latents: of these it sees shapes and references. Players put each group into Ray's object
store; a learner takes the groups of which it has episodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import ray
import torch
from ray.exceptions import RayError
from torch import Tensor

from unirl_env.episode import EpisodeBatch, Kept, Phase
from unirl_env.errors import EpisodesLost


def put_away(batch: EpisodeBatch) -> EpisodeBatch:
    """The batch without its large tensors, which lie in Ray's object store, an object for each group.

    Args:
        batch: On the CPU, of whole groups in a row.
    """
    groups, member, sizes = batch.group.unique_consecutive(return_inverse=True, return_counts=True)
    whole = replace(batch, samples=None)
    sources = tuple(ray.put(whole.select(member == number)) for number in range(len(groups)))
    place = torch.cat([torch.arange(int(size)) for size in sizes])
    light = {name: phase.light() for name, phase in batch.phases.items()}
    return replace(batch, phases=light, kept=Kept(sources, member, place))


def fetched(phases: Mapping[str, Phase], kept: Kept) -> dict[str, Phase]:
    """The phases with their large tensors.

    Args:
        phases: As `put_away` left them, of some of its episodes; masks and log-probs may have changed since.
        kept: Of the same episodes.

    Raises:
        EpisodesLost: If whoever had them is gone.
    """
    wanted = kept.source.unique().tolist()
    try:
        batches = ray.get([kept.sources[number] for number in wanted])
    except RayError as error:
        raise EpisodesLost(
            f"The episodes of an iteration must be where they were played, got {type(error).__name__}: a "
            "player or its node died; they are played again."
        ) from error
    order = torch.cat([(kept.source == number).nonzero()[:, 0] for number in wanted])
    found = {}
    for name, light in phases.items():
        parts = [
            batch.phases[name].select(kept.place[kept.source == number])
            for number, batch in zip(wanted, batches, strict=True)
        ]
        whole = Phase.cat(parts).select(order.argsort())
        found[name] = _as_now(whole, light)
    return found


def _as_now(whole: Phase, light: Phase) -> Phase:
    """The phase with the masks and log-probs that were changed meanwhile, as wide as they are."""
    wide = light.log_prob.shape[1] - whole.log_prob.shape[1]
    if wide:  # a ragged phase: episodes that others have are longer
        pad = torch.nn.functional.pad
        whole = replace(
            whole,
            observation={name: _padded(tensor, wide) for name, tensor in whole.observation.items()},
            action=pad(whole.action, (0, wide), value=-1),
            log_prob=pad(whole.log_prob, (0, wide)),
            mask=pad(whole.mask, (0, wide)),
        )
    return replace(whole, log_prob=light.log_prob, mask=light.mask)


def _padded(tensor: Tensor, wide: int) -> Tensor:
    return torch.cat([tensor, tensor.new_zeros(len(tensor), wide, *tensor.shape[2:])], 1)
