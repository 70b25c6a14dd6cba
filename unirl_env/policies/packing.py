"""Token episodes laid end to end, without padding: what a language model scores in one pass.

A packed row is `[prompt 0, continuation 0, prompt 1, continuation 1, ...]`. A continuation's last token is
left out: nothing is predicted from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unirl_env.episode import Phase
from unirl_env.policies.routing import ROUTES

__all__ = ["PackedTokens", "pack_continuations", "pack_prefixes", "sequence_lengths"]

OWN = ("prompt", "prompt_length", "positions", "prompt_routes")
"""Context of a token phase that is not a picture."""


@dataclass(frozen=True)
class PackedTokens:
    """Some episodes of a token phase as one row, and where its trained tokens came from.

    Attributes:
        observation: `tokens` `[L]`, `lengths` `[n]`, `positions` `[A, L]` (A axes of the model's rotary
            positions), `source` `[N]` (the place in the row that predicts each trained token), and pictures;
            `follows` `[n]` where prompts are shared, `routes` `[L, R, k]` where experts are replayed.
        action: `[N]` int64, the trained tokens.
        episode: `[N]` int64, the episode of each, as numbered in the phase.
        step: `[N]` int64, its place in the continuation.
    """

    observation: dict[str, Tensor]
    action: Tensor
    episode: Tensor
    step: Tensor


def sequence_lengths(phase: Phase) -> Tensor:
    """Tokens that each episode `[B]` brings into a packed row."""
    continuation = (phase.action >= 0).sum(1)
    prompt = phase.context["prompt_length"][phase.context_row].to(continuation)
    return prompt + (continuation - 1).clamp_min(0)


def pack_continuations(phase: Phase, index: Tensor, *, branching: bool = False) -> PackedTokens:
    """The episodes at `index` `[n]` of a token phase, and their unmasked tokens as actions.

    Args:
        phase: The phase.
        index: Which episodes.
        branching: Lay a prompt that several of them have once, and what they say behind it; for networks that
            know `follows` (`TokenBackbone.branches`).
    """
    assert phase.context_row is not None
    row, action = phase.context_row[index], phase.action[index]
    if branching and len(row.unique()) < len(row):
        return _branched(phase, index, row, action)
    context = {name: tensor[row] for name, tensor in phase.context.items()}
    prompt, prompt_length = context["prompt"], context["prompt_length"]
    continuation = (action >= 0).sum(1)
    keep = torch.cat([_before(prompt_length, prompt), _before(continuation - 1, action)], 1)
    tokens = torch.cat([prompt, action], 1)
    pictures = {name: tensor for name, tensor in context.items() if name not in OWN}
    observation = _packed(tokens, keep, prompt_length, context.get("positions"), pictures)
    which, step = phase.mask[index].nonzero(as_tuple=True)
    first = observation["lengths"].cumsum(0) - observation["lengths"]
    observation["source"] = (first + prompt_length)[which] + step - 1
    if ROUTES in phase.observation:
        chosen = torch.cat([context["prompt_routes"], phase.observation[ROUTES][index]], 1)
        observation[ROUTES] = chosen[keep]
    return PackedTokens(observation, action[which, step], index[which], step)


def _branched(phase: Phase, index: Tensor, row: Tensor, action: Tensor) -> PackedTokens:
    """The prompts of the episodes, each once, and behind all of them what was said."""
    row, which = row.unique(return_inverse=True)
    context = {name: tensor[row] for name, tensor in phase.context.items()}
    prompt, length, own = context["prompt"], context["prompt_length"], context.get("positions")
    pictures = {name: tensor for name, tensor in context.items() if name not in OWN}
    trunk = _packed(prompt, _before(length, prompt), length, own, pictures)
    said = ((action >= 0).sum(1) - 1).clamp_min(0)
    keep = _before(said, action)
    after = length
    if own is not None:
        after = torch.where(_before(length, own[:, 0])[:, None], own, -1).amax((1, 2)) + 1
    place = (after[which][:, None] + torch.arange(action.shape[1], device=action.device))[keep]
    spoken = said > 0
    observation = {
        **trunk,
        "tokens": torch.cat([trunk["tokens"], action[keep]]),
        "lengths": torch.cat([trunk["lengths"], said[spoken]]),
        "follows": torch.cat([torch.full_like(length, -1), which[spoken]]),
        "positions": torch.cat([trunk["positions"], place.expand(len(trunk["positions"]), -1)], 1),
    }
    episode, step = phase.mask[index].nonzero(as_tuple=True)
    ends, begins = length.cumsum(0), length.sum() + said.cumsum(0) - said
    observation["source"] = torch.where(step == 0, ends[which[episode]], begins[episode] + step) - 1
    if ROUTES in phase.observation:
        begun = context["prompt_routes"][_before(length, prompt)]
        observation[ROUTES] = torch.cat([begun, phase.observation[ROUTES][index][keep]])
    return PackedTokens(observation, action[episode, step], index[episode], step)


def pack_prefixes(obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An observation of `TokenVectorEnv` as one row; `source` `[B]` is the last token of each episode."""
    own = ("tokens", "length", "prompt_length", "is_action", "positions")
    pictures = {name: tensor for name, tensor in obs.items() if name not in own}
    keep = _before(obs["length"], obs["tokens"])
    packed = _packed(obs["tokens"], keep, obs["prompt_length"], obs.get("positions"), pictures)
    packed["source"] = packed["lengths"].cumsum(0) - 1
    return packed


def _packed(
    tokens: Tensor,
    keep: Tensor,
    prompt_length: Tensor,
    positions: Tensor | None,
    pictures: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The kept tokens `[B, W]` in a row, with the position of each in its own sequence."""
    lengths = keep.sum(1)
    place = (keep.cumsum(1) - 1)[keep]
    which = torch.arange(len(tokens), device=tokens.device).repeat_interleave(lengths)
    return {
        "tokens": tokens[keep],
        "lengths": lengths,
        "positions": place[None] if positions is None else _placed(place, which, prompt_length, positions),
        **_real_patches(pictures),
    }


def _placed(place: Tensor, which: Tensor, prompt_length: Tensor, positions: Tensor) -> Tensor:
    """Rotary positions `[A, L]`: the prompt's own `[B, A, Lp]`, and one more for each token after it."""
    known = torch.where(_before(prompt_length, positions[:, 0])[:, None], positions, -1)
    after = known.amax((1, 2))[which] + 1 + place - prompt_length[which]
    given = known[which, :, place.clamp_max(known.shape[2] - 1)].T
    return torch.where(place < prompt_length[which], given, after)


def _real_patches(pictures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pictures end to end, too: the patches and grids `[B, ...]` that are not padding."""
    if not pictures:
        return {}
    grid = pictures["image_grid_thw"]
    patches = grid.prod(-1)
    real = _before(patches.sum(1), pictures["pixel_values"])
    return {"pixel_values": pictures["pixel_values"][real], "image_grid_thw": grid[patches > 0]}


def _before(length: Tensor, like: Tensor) -> Tensor:
    """`[B, W]` bool: the first `length` `[B]` of the columns of `like` `[B, W, ...]`."""
    return torch.arange(like.shape[1], device=like.device) < length[:, None]
