"""Answers as rows of actions for the environment, and finished texts as a phase for the learner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from unirl_env.envs.tokens import WAIT
from unirl_env.episode import Phase
from unirl_env.models.words import Encoded
from unirl_env.rollouts.drivers.driver import distinct
from unirl_env.rollouts.engines.base import Answer

__all__ = ["lay_out", "token_phase"]


def lay_out(
    answers: Sequence[Answer],
    rows: Tensor,
    places: Sequence[int],
    eos_ids: Sequence[int],
    log_prob: Tensor,
) -> Tensor:
    """Answers as actions, one row per step; notes their log-probabilities.

    Args:
        answers: `b` of them.
        rows: `[b]` int64, the episode of each.
        places: `[b]`, how many tokens follow the prompt of each episode so far.
        eos_ids: What stands after one of these is not an action: a tool may have the word.
        log_prob: `[B, S]` float32, of each episode's tokens by their places after the prompt; changed.

    Returns:
        `[n, B]` int64, `WAIT` where an episode has nothing to say.
    """
    counts = torch.tensor([len(answer.tokens) for answer in answers])
    token = torch.tensor([*chain.from_iterable(answer.tokens for answer in answers)])
    said = torch.tensor([*chain.from_iterable(answer.log_probs for answer in answers)])
    episode = rows.cpu().repeat_interleave(counts)
    step = torch.arange(len(token)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    log_prob[episode, step + torch.tensor(places).repeat_interleave(counts)] = said
    actions = torch.full((int(counts.max()), len(log_prob)), WAIT)
    actions[step, episode] = token
    ended = torch.isin(actions, torch.tensor(list(eos_ids), dtype=torch.int64)).int()
    actions[ended.cumsum(0) > ended] = WAIT
    return actions


def token_phase(
    obs: Mapping[str, Any],
    encodings: Sequence[Encoded],
    input_spaces: Mapping[str, tuple[tuple[int, ...], str]],
    log_prob: Tensor,
) -> Phase:
    """The finished texts, or pictures of tokens, as a phase.

    Args:
        obs: The last observation, of the torch backend.
        encodings: B prompts as the model reads them; episodes with the same one share a row of the context.
        input_spaces: The model's.
        log_prob: `[B, S]` float32, what `lay_out` noted.
    """
    tokens, is_action = torch.as_tensor(obs["tokens"]), torch.as_tensor(obs["is_action"]).bool()
    length, prompt_length = torch.as_tensor(obs["length"]), torch.as_tensor(obs["prompt_length"])
    device = tokens.device
    count = length - prompt_length
    place = torch.arange(int(count.max()), device=device)
    said = place < count[:, None]
    index = (prompt_length[:, None] + place).clamp_max(tokens.shape[1] - 1)
    mask = said & is_action.gather(1, index)
    first, row = distinct([id(encoded) for encoded in encodings])
    first = first.to(device)
    prompt = tokens[first, : int(prompt_length.max())]
    outside = torch.arange(prompt.shape[1], device=device) >= prompt_length[first][:, None]
    return Phase(
        observation={},
        action=torch.where(said, tokens.gather(1, index), -1),
        log_prob=torch.where(mask, log_prob[:, : len(place)].to(device), 0.0),
        mask=mask,
        context={
            "prompt": prompt.masked_fill(outside, 0),
            "prompt_length": prompt_length[first],
            **{
                name: _padded([encodings[i].inputs.get(name) for i in first.tolist()], *space).to(device)
                for name, space in input_spaces.items()
            },
        },
        context_row=row.to(device),
        ragged=True,
    )


def _padded(values: Sequence[Tensor | None], shape: Sequence[int], dtype: str) -> Tensor:
    """`[P, ...]`, as wide as the widest value; what a prompt has not is zeros."""
    missing = torch.empty(0, *shape[1:])
    values = [missing if value is None else value for value in values]
    size = [max(sizes) for sizes in zip(*(value.shape for value in values), strict=True)]
    out = torch.zeros(len(values), *size, dtype=getattr(torch, dtype))
    for row, value in zip(out, values, strict=True):
        row[tuple(map(slice, value.shape))] = value.to(row)
    return out
