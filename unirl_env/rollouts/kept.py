"""Large tensors that stay with whoever played, until whoever learns from them takes its own.

Between players and learners stands the driver, which gives credit. It needs scores, groups and what a step's
noise was, and no latents: of these it sees shapes and references. Players put what is large of each group in
Ray's object store, as arrays that whoever is on the same node reads without a copy; a learner takes those of
the groups of which it has episodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError
from torch import Tensor

from unirl_env.episode import EpisodeBatch, Kept, Phase
from unirl_env.errors import EpisodesLost

PLAIN = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the bytes of a number, as what NumPy takes it, which does not know all that torch does."""


Name = tuple[str, str]
"""A field of a phase, and of an observation which."""
ACTION = ("action", "")


@dataclass(frozen=True)
class _Large:
    """The large tensors of a group in a phase.

    Attributes:
        arrays: By name, each `[n, ...]` of its episodes.
        contexts: By name, each `[p, ...]` of its prompts.
        context_row: Of each episode.
    """

    arrays: dict[Name, np.ndarray]
    contexts: dict[str, np.ndarray]
    context_row: tuple[int, ...]


def put_away(batch: EpisodeBatch) -> EpisodeBatch:
    """The batch without its large tensors, which lie in Ray's object store, an object for each group.

    Args:
        batch: On the CPU, of whole groups in a row.
    """
    _, member, sizes = batch.group.unique_consecutive(return_inverse=True, return_counts=True)
    light = {name: phase.light() for name, phase in batch.phases.items()}
    sources = tuple(
        ray.put({name: _large(phase, light[name], start, stop) for name, phase in batch.phases.items()})
        for start, stop in pairwise([0, *sizes.cumsum(0).tolist()])
    )
    place = torch.cat([torch.arange(int(size)) for size in sizes])
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
        found = ray.get([kept.sources[number] for number in wanted])
    except RayError as error:
        raise EpisodesLost(
            f"The episodes of an iteration must be where they were played, got {type(error).__name__}: a "
            "player or its node died; they are played again."
        ) from error
    groups = dict(zip(wanted, found, strict=True))
    return {
        name: _whole(light, kept, {number: group[name] for number, group in groups.items()})
        for name, light in phases.items()
    }


def _large(phase: Phase, light: Phase, start: int, stop: int) -> _Large:
    """What is large of the episodes from `start` to `stop`."""
    tensors = _tensors(phase)
    arrays = {name: _array(tensors[name][start:stop]) for name in _missing(light)}
    contexts = {name: phase.context[name] for name, like in light.context.items() if like.is_meta}
    if phase.context_row is None or not contexts:
        return _Large(arrays, {}, ())
    used, row = phase.context_row[start:stop].unique(return_inverse=True)
    return _Large(arrays, {name: _array(each[used]) for name, each in contexts.items()}, tuple(row.tolist()))


def _whole(light: Phase, kept: Kept, groups: Mapping[int, _Large]) -> Phase:
    """The phase with what is missing, as wide as it is: episodes that others have may be longer."""
    runs = list(_runs(kept.source.tolist(), kept.place.tolist()))
    found: dict[Name, Tensor] = {}
    for name, like in _missing(light).items():
        fill = -1 if name == ACTION else 0
        # Nothing is written twice where all are as wide.
        whole = torch.full(like.shape, fill, dtype=like.dtype) if light.ragged else _empty(like)
        found[name], target = whole, _array(whole)
        for start, stop, source, place in runs:
            _lay(target[start:stop], groups[source].arrays[name][place : place + stop - start])
    seen = {name: tensor for (field, name), tensor in found.items() if field == "observation"}
    own: dict[str, Any] = {field: tensor for (field, _), tensor in found.items() if field != "observation"}
    context = {**light.context, **_contexts(light, kept, groups)}
    return replace(light, observation={**light.observation, **seen}, context=context, **own)


def _contexts(light: Phase, kept: Kept, groups: Mapping[int, _Large]) -> dict[str, Tensor]:
    """What is missing of the contexts: each row as the first episode has it that reads it."""
    missing = {name: like for name, like in light.context.items() if like.is_meta}
    if light.context_row is None or not missing:
        return {}
    found = {name: torch.zeros(like.shape, dtype=like.dtype) for name, like in missing.items()}
    episodes = list(enumerate(light.context_row.tolist()))
    for row, episode in {row: episode for episode, row in reversed(episodes)}.items():
        group = groups[int(kept.source[episode])]
        place = group.context_row[int(kept.place[episode])]
        for name, tensor in found.items():
            _lay(_array(tensor)[row], group.contexts[name][place])
    return found


def _runs(source: Sequence[int], place: Sequence[int]) -> Iterable[tuple[int, int, int, int]]:
    """Episodes that follow each other in one object: from where to where, its number, and where in it."""
    begins = [
        i for i in range(len(source)) if not i or source[i] != source[i - 1] or place[i] != place[i - 1] + 1
    ]
    return ((start, stop, source[start], place[start]) for start, stop in pairwise([*begins, len(source)]))


def _lay(target: np.ndarray, values: np.ndarray) -> None:
    """Write values where they are no larger, at the beginning of each dimension."""
    target[tuple(slice(size) for size in values.shape)] = values


def _tensors(phase: Phase) -> dict[Name, Tensor]:
    """Those of episodes."""
    own = {ACTION: phase.action, ("mean", ""): phase.mean, ("final", ""): phase.final}
    seen = {("observation", name): tensor for name, tensor in phase.observation.items()}
    return {**seen, **{name: tensor for name, tensor in own.items() if tensor is not None}}


def _missing(light: Phase) -> dict[Name, Tensor]:
    """Those that have shapes alone."""
    return {name: tensor for name, tensor in _tensors(light).items() if tensor.is_meta}


def _array(tensor: Tensor) -> np.ndarray:
    """The tensor's memory, whatever its data type."""
    array: np.ndarray = tensor.detach().view(PLAIN[tensor.dtype.itemsize]).numpy()
    return array


def _empty(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype)
