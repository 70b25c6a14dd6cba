"""Which experts read contexts and what was written behind them, beside the answers of the local engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from unirl_env.policies.routing import Routing, unknown
from unirl_env.rollouts.engines.base import Answer


class WrittenRoutes:
    """What routers choose while B answers are written.

    Args:
        routing: Of the actor; None records nothing.
    """

    def __init__(self, routing: Routing | None):
        self._routing = routing
        self._contexts, self._row = torch.empty(0), torch.empty(0)
        self._columns: list[tuple[Tensor, Tensor]] = []

    @contextmanager
    def of_contexts(self, shape: Sequence[int], row: Tensor) -> Iterator[None]:
        """Within it, P contexts are read, L tokens wide and padded on the left.

        Args:
            shape: P and L.
            row: `[B]`, the context of each answer.
        """
        if self._routing is None:
            yield
            return
        with self._routing.recording() as recorded:
            yield
        self._contexts, self._row = recorded.routes().unflatten(0, tuple(shape)).cpu(), row.cpu()

    @contextmanager
    def of_tokens(self, episode: Tensor) -> Iterator[None]:
        """Within it, the next token of each of the answers `episode` `[b]` is read."""
        if self._routing is None:
            yield
            return
        with self._routing.recording() as recorded:
            yield
        self._columns.append((episode, recorded.routes()))

    def beside(self, answers: list[Answer], contexts: Sequence[int]) -> list[Answer]:
        """The answers with what was chosen in reading each token but the last.

        Args:
            answers: B of them.
            contexts: `[B]`, the tokens of each context.
        """
        if self._routing is None:
            return answers
        sizes = self._contexts.shape[2:]
        written = self._contexts.new_full((len(answers), len(self._columns), *sizes), unknown(self._contexts))
        for place, (episode, routes) in enumerate(self._columns):
            written[episode.cpu(), place] = routes.cpu()
        found = []
        for number, (answer, length) in enumerate(zip(answers, contexts, strict=True)):
            before = self._contexts[self._row[number]]
            parts = [before[before.shape[0] - length :], written[number, : len(answer.tokens) - 1]]
            found.append(replace(answer, routes=torch.cat(parts)))
        return found
