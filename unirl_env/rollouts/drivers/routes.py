"""Which experts read the tokens of episodes, gathered from the answers of an engine over all turns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unirl_env.errors import ContractError
from unirl_env.policies.routing import unknown
from unirl_env.rollouts.engines.base import Answer, Request


class Routes:
    """What the routers chose for each token of B texts, prompts included, as each was first read.

    Args:
        count: B.
    """

    def __init__(self, count: int):
        self._tokens: list[tuple[int, ...]] = [()] * count
        self._routes: list[Tensor | None] = [None] * count

    def add(self, answers: Sequence[Answer], requests: Sequence[Request], rows: Sequence[int]) -> None:
        """Note what was chosen in reading contexts, and in writing what follows them.

        Args:
            answers: With `routes`.
            requests: What they answer.
            rows: The episode of each.

        Raises:
            ContractError: If an answer comes without.
        """
        for answer, request, row in zip(answers, requests, rows, strict=True):
            read = (request.tokens + answer.tokens)[:-1]
            if answer.routes is None or len(answer.routes) != len(read):
                raise ContractError(
                    f"An engine must return the `routes` of {len(read)} tokens with policy.replay_routing, "
                    f"got {None if answer.routes is None else len(answer.routes)}; try policy.replay_routing"
                    "=false."
                )
            known, before = self._routes[row], self._tokens[row]
            # What was read before by the same tokens is what the answers of then were sampled by.
            same = 0
            while same < min(len(before), len(request.tokens)) and before[same] == request.tokens[same]:
                same += 1
            fresh = answer.routes[same:]
            self._routes[row] = fresh if known is None else torch.cat([known[:same], fresh])
            self._tokens[row] = read

    def of_prompts(self, rows: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """`[P, Lp, R, k]` of the prompts of the episodes `rows`, which have so many tokens."""
        return self._padded([(row, 0, length) for row, length in zip(rows, lengths, strict=True)])

    def of_texts(self, begins: Sequence[int], ends: Sequence[int]) -> Tensor:
        """`[B, S, R, k]` of the tokens behind the prompts, from `begins` to `ends` of each episode."""
        return self._padded(list(zip(range(len(begins)), begins, ends, strict=True)))

    def _padded(self, pieces: Sequence[tuple[int, int, int]]) -> Tensor:
        """The choices of episodes between two places each; unknown where nobody has read."""
        like = next(routes for routes in self._routes if routes is not None)
        width = max(end - begin for _, begin, end in pieces)
        out = like.new_full((len(pieces), width, *like.shape[1:]), unknown(like))
        for place, (row, begin, end) in enumerate(pieces):
            routes = self._routes[row]
            if routes is not None:
                found = routes[begin:end]
                out[place, : len(found)] = found
        return out
