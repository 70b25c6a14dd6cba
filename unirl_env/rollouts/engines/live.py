"""The answers that are still being written, and what stands in them so far; nothing here goes row by row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import unirl_env.functional as F
from unirl_env.rollouts.engines.base import Answer, Request

__all__ = ["LiveRows", "Record"]

DRAWS = 64
"""Steps whose random numbers are made at once: making few costs as much as making many."""


class LiveRows:
    """What each row of the decoding batch needs; rows that are finished stay until `compact`.

    Attributes:
        episode: `[b]` int64, which request each row answers.
        position: `[b]` int64, the rotary position of the row's first new token.
        longest: Tokens of the longest answer that was asked for.

    Args:
        requests: B requests.
        position: `[B]`.
        real: `[B, L]` bool, which tokens of the contexts are not padding; None if all are.
    """

    def __init__(self, requests: Sequence[Request], position: Tensor, real: Tensor | None):
        device = position.device
        self.episode = torch.arange(len(requests), device=device)
        self.position = position
        limits = torch.tensor([request.max_new_tokens for request in requests])
        self.longest = int(limits.max())
        self._limit = limits.to(device)
        self._done = torch.zeros(len(requests), dtype=torch.bool, device=device)
        self._seed = torch.tensor([request.seed for request in requests])
        self._start = torch.tensor([request.position for request in requests])
        self._uniform = torch.empty(len(requests), 0)
        self._drawn = 0
        self._mask, self._width = None, 0
        if real is not None:
            self._width = real.shape[1]
            self._mask = torch.nn.functional.pad(real, (0, self.longest), value=True)

    def __len__(self) -> int:
        return len(self.episode)

    def mask(self, t: int) -> Tensor | None:
        """`[b, L + t + 1]` bool: the tokens that exist once new token `t` has been read."""
        return None if self._mask is None else self._mask[:, : self._width + t + 1]

    def uniform(self, t: int) -> Tensor:
        """`[b]` numbers in [0, 1) that draw new token `t`."""
        column = t % DRAWS
        if t >= self._drawn:
            count = min(DRAWS, self.longest - t)
            rows = self.episode.cpu()
            steps = self._start[rows, None] + t + torch.arange(count)
            seeds = self._seed[rows].repeat_interleave(count)
            drawn = F.keyed_uniform(seeds, steps.flatten(), device=self.position.device)
            # One column after another: a step reads one.
            self._uniform = drawn.view(len(rows), count).T.contiguous()
            self._drawn = t + count
        return self._uniform[column]

    def finish(self, t: int, ended: Tensor) -> int:
        """Note the rows that token `t` ended, `ended` `[b]` or at their limit; how many are finished now."""
        self._done |= ended | (self._limit <= t + 1)
        return int(self._done.sum())

    def compact(self) -> Tensor:
        """Let the finished rows go; returns the row numbers `[b]` of those that stay."""
        keep = (~self._done).nonzero().flatten()
        self.episode, self.position = self.episode[keep], self.position[keep]
        self._limit, self._done = self._limit[keep], self._done[keep]
        self._uniform = self._uniform[:, keep] if self._drawn else self._uniform
        self._mask = None if self._mask is None else self._mask[keep]
        return keep


class Record:
    """Tokens and log-probabilities of B answers as they are written, one column after another.

    Rows of finished answers write on until they are let go; `answers` cuts that off.
    """

    def __init__(self, count: int, longest: int, device: torch.device | str = "cpu"):
        self._tokens = torch.zeros(count, longest, dtype=torch.int64, device=device)
        self._log_probs = torch.zeros(count, longest, device=device)
        self._episode = torch.arange(count, device=device)
        self._open: list[tuple[Tensor, Tensor]] = []
        self._written = 0

    def add(self, token: Tensor, log_prob: Tensor) -> None:
        """Write `[b]` tokens and their log-probabilities."""
        self._open.append((token, log_prob))

    def close(self, episode: Tensor) -> None:
        """Go on with the episodes `episode` `[b]` only."""
        if self._open:
            stop = self._written + len(self._open)
            tokens, log_probs = (torch.stack(column, 1) for column in zip(*self._open, strict=True))
            self._tokens[self._episode, self._written : stop] = tokens
            self._log_probs[self._episode, self._written : stop] = log_probs
            self._written, self._open = stop, []
        self._episode = episode

    def answers(self, limits: Sequence[int], ends: Tensor) -> list[Answer]:
        """The answers: each up to its first token among `ends`, or to its limit `[B]`."""
        self.close(self._episode)
        tokens, limit = self._tokens[:, : self._written].cpu(), torch.tensor(limits)
        ended = torch.isin(tokens, ends.cpu())
        # `argmax` finds the first one; where there is none, the limit counts.
        length = torch.where(ended.any(1), ended.int().argmax(1) + 1, limit).minimum(limit).tolist()
        log_probs = self._log_probs[:, : self._written].tolist()
        return [
            Answer(tuple(t[:n]), tuple(p[:n]))
            for t, p, n in zip(tokens.tolist(), log_probs, length, strict=True)
        ]
