"""Generation in this process: the policy's own network, one forward pass per token of all live episodes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

import unirl_env.functional as F
from unirl_env.errors import ConfigError, EngineError
from unirl_env.policies.actor import Actor
from unirl_env.rollouts.engines.base import Answer, Engine, Request
from unirl_env.rollouts.engines.contexts import PaddedContexts, distinct_contexts
from unirl_env.rollouts.engines.live import LiveRows, Record

__all__ = ["LocalEngine"]

COMPACT = 4
"""Finished rows leave the batch when they are at least one in this many: leaving copies the others' cache."""


class LocalEngine(Engine):
    """Generates with an actor's own network, on its device.

    Requests with one context (the members of a group) are read once, and what was computed is repeated for
    them. Draws are keyed by the episode, so an answer does not depend on what it is batched with, beyond the
    last bits that matrix libraries change with the number of rows: these can tip a draw that falls on the
    very border between two tokens.

    Args:
        actor: The policy.
        phase: Which of its heads writes, by the head's own sampling settings; None where there is one.
        eos_ids: The tokens that end an answer; None takes the model's own.
        rows: The most sequences decoded together; None takes all at once. Bounds memory.

    Raises:
        ConfigError: If `rows` is not positive.
    """

    def __init__(
        self,
        actor: Actor,
        *,
        phase: str | None = None,
        eos_ids: Sequence[int] | None = None,
        rows: int | None = None,
    ):
        if rows is not None and rows < 1:
            raise ConfigError(f"`rows` must be at least 1, got {rows}; try None, which decodes all at once.")
        self.actor, self.head, self.rows = actor, actor.head(phase), rows
        self.eos_ids = tuple(self.head.model.eos_ids if eos_ids is None else eos_ids)

    def load_weights(self, version: int, actor: Actor) -> None:
        """Take over `actor`'s trained weights; of its own actor, only the version changes."""
        if actor is not self.actor:
            self.actor.load_trainable_state(actor.trainable_state())
        self.weights_version = version

    @torch.no_grad()
    def generate(
        self, requests: Sequence[Request], *, temperature: float | None = None, base: bool = False
    ) -> list[Answer]:
        """Continue every request's context; see `Engine.generate`."""
        self._check(requests)
        temperature = self.head.temperature if temperature is None else float(temperature)
        answers: list[Answer | None] = [None] * len(requests)
        with self.actor.reference() if base else nullcontext():
            for lot in self._lots(requests):
                found = self._continue([requests[i] for i in lot], temperature)
                for i, answer in zip(lot, found, strict=True):
                    answers[i] = answer
        return answers

    def _lots(self, requests: Sequence[Request]) -> list[list[int]]:
        """Numbers of the requests that are decoded together.

        Contexts of about one length together need little padding; members of a group stay together.
        """
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].tokens))
        padded = self.head.model.padded(self.actor.network)
        lots: list[list[int]] = []
        for i in order:
            full = not lots or len(lots[-1]) == self.rows
            if full or not (padded or len(requests[i].tokens) == len(requests[lots[-1][0]].tokens)):
                lots.append([])
            lots[-1].append(i)
        return lots

    def _check(self, requests: Sequence[Request]) -> None:
        most = self.head.model.max_context
        for request in requests:
            wanted = len(request.tokens) + request.max_new_tokens
            if wanted > most:
                raise EngineError(
                    f"Context and answer must fit into the model's {most} tokens, got {len(request.tokens)} "
                    f"and max_new_tokens={request.max_new_tokens} for prompt {request.prompt.id[:60]!r}; "
                    "lower `max_prompt_tokens` or `max_new_tokens`."
                )

    def _continue(self, requests: Sequence[Request], temperature: float) -> list[Answer]:
        from unirl_env.models.shared.cache import roomy_cache

        model, network = self.head.model, self.actor.network
        output = model.head(network)
        contexts, row = distinct_contexts(requests)
        cache = roomy_cache(network.config)
        prompt = PaddedContexts.of(contexts, model, output.device)
        row = row.to(output.device)
        hidden = model.hidden(
            network, prompt.tokens, prompt.positions, inputs=prompt.inputs, mask=prompt.mask, cache=cache
        )[:, -1][row]
        _select(cache, row, len(contexts), model.streams)
        live = LiveRows(
            requests, prompt.next_position[row], None if prompt.mask is None else prompt.mask[row]
        )
        record = Record(len(requests), live.longest, output.device)
        ends = torch.tensor(self.eos_ids, dtype=torch.int64, device=output.device)
        for t in range(live.longest):
            step = F.token_step(
                hidden @ output.T,
                temperature=temperature,
                top_p=self.head.top_p,
                top_k=self.head.top_k,
                uniform=live.uniform(t) if temperature else None,
            )
            token = step.token + model.first_id
            record.add(token, step.log_prob)
            finished = live.finish(t, (token[:, None] == ends).any(1))
            if finished == len(live):
                break
            if finished * COMPACT >= len(live):
                count, keep = len(live), live.compact()
                record.close(live.episode)
                _select(cache, keep, count, model.streams)
                token = token[keep]
            positions = (live.position + t).expand(model.position_axes, -1)[..., None]
            hidden = model.hidden(network, token[:, None], positions, mask=live.mask(t), cache=cache)[:, -1]
        return record.answers([request.max_new_tokens for request in requests], ends)


def _select(cache: Any, rows: Tensor, count: int, streams: int) -> None:
    """Keep the states of the sequences at `rows` `[b]`, which may repeat some, of `count`."""
    from unirl_env.models.shared.cache import select_rows

    select_rows(cache, torch.cat([rows + count * stream for stream in range(streams)]))
