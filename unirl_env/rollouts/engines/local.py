"""Generation in this process: the policy's own network, one forward pass per token of all live episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import unirl_env.functional as F
from unirl_env.episode import distinct
from unirl_env.errors import ConfigError, EngineError
from unirl_env.models.backbone import TokenBackbone
from unirl_env.policies.actor import Actor
from unirl_env.rollouts.engines._routes import WrittenRoutes
from unirl_env.rollouts.engines.base import Answer, Engine, Request

COMPACT = 4
"""Finished rows leave the batch when they are at least one in this many: leaving copies the others' cache."""
DRAWS = 64
"""Steps whose random numbers are made at once: making few costs as much as making many."""


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
        self.actor, self.head, self.phase, self.rows = actor, actor.head(phase), phase, rows
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
        with self.actor.acting(base=base):
            for batch in self._batches(requests):
                found = self._continue([requests[i] for i in batch], temperature)
                for i, answer in zip(batch, found, strict=True):
                    answers[i] = answer
        return answers

    def _batches(self, requests: Sequence[Request]) -> list[list[int]]:
        """Numbers of the requests that are decoded together.

        Contexts of about one length together need little padding; members of a group stay together.
        """
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].tokens))
        padded = self.head.model.padded(self.actor.part(self.phase))
        batches: list[list[int]] = []
        for i in order:
            full = not batches or len(batches[-1]) == self.rows
            if full or not (padded or len(requests[i].tokens) == len(requests[batches[-1][0]].tokens)):
                batches.append([])
            batches[-1].append(i)
        return batches

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

        model, device = self.head.model, self.actor.device
        contexts, row = _distinct_contexts(requests)
        cache = roomy_cache(self.actor.part(self.phase).config)
        prompt = PaddedContexts.of(contexts, model, device)
        row = row.to(device)
        routes = WrittenRoutes(self.actor.routing)
        with routes.of_contexts(prompt.tokens.shape, row):
            logits = self._logits(
                prompt.tokens, prompt.positions, row, inputs=prompt.inputs, mask=prompt.mask, cache=cache
            )
        _select(cache, row, len(contexts), model.streams)
        live = LiveRows(
            requests, prompt.next_position[row], None if prompt.mask is None else prompt.mask[row]
        )
        record = Record(len(requests), live.longest, device)
        ends = torch.tensor(self.eos_ids, dtype=torch.int64, device=device)
        for t in range(live.longest):
            step = F.token_step(
                logits,
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
            with routes.of_tokens(live.episode):
                logits = self._logits(token[:, None], positions, mask=live.mask(t), cache=cache)
        answers = record.answers([request.max_new_tokens for request in requests], ends)
        return routes.beside(answers, [len(request.tokens) for request in requests])

    def _logits(self, tokens: Tensor, positions: Tensor, row: Tensor | None = None, **how: Any) -> Tensor:
        """Of the next token of each row `[B, V]`; of the rows at `row`, where it is given."""
        model, network = self.head.model, self.actor.part(self.phase)

        def read() -> Tensor:
            hidden = model.hidden(network, tokens, positions, **how)[:, -1]
            return (hidden if row is None else hidden[row]) @ model.head(network).T

        self.actor.anyone(True)
        return self.actor.within(read)

    @torch.no_grad()
    def join(self, *, base: bool = False) -> None:
        """Where processes hold parts of the network, pass through it until all of them have their answers."""
        model, one = self.head.model, torch.ones(1, dtype=torch.int64, device=self.actor.device)
        tokens, positions = model.pad_id * one[None], torch.zeros_like(one).expand(model.position_axes, 1, 1)
        with self.actor.acting(base=base):
            network = self.actor.part(self.phase)
            while self.actor.anyone(False):
                self.actor.within(lambda: model.hidden(network, tokens, positions, lengths=one))


@dataclass(frozen=True)
class PaddedContexts:
    """P contexts, L tokens wide.

    Attributes:
        tokens: `[P, L]` int64.
        positions: `[A, P, L]` int64.
        mask: `[P, L]` bool, True where a token is real; None if all are.
        next_position: `[P]` int64, the position of the first token after each context, on all axes.
        inputs: The model's further inputs, end to end.
    """

    tokens: Tensor
    positions: Tensor
    mask: Tensor | None
    next_position: Tensor
    inputs: dict[str, Tensor] | None

    @classmethod
    def of(
        cls, requests: Sequence[Request], model: TokenBackbone, device: torch.device | str = "cpu"
    ) -> PaddedContexts:
        """The contexts of `requests` for `model`, on `device`."""
        lengths = torch.tensor([len(request.tokens) for request in requests])
        width, axes = int(lengths.max()), model.position_axes
        tokens = torch.full((len(requests), width), model.pad_id)
        positions = torch.zeros(axes, len(requests), width, dtype=torch.int64)
        for i, request in enumerate(requests):
            begin = width - len(request.tokens)
            tokens[i, begin:] = torch.tensor(request.tokens)
            positions[:, i, begin:] = _positions(request, axes)
        mask = torch.arange(width) >= (width - lengths)[:, None]
        names = dict.fromkeys(name for request in requests for name in request.inputs if name != "positions")
        inputs = {
            name: torch.cat([r.inputs[name] for r in requests if name in r.inputs]).to(device)
            for name in names
        }
        return cls(
            tokens=tokens.to(device),
            positions=positions.to(device),
            mask=None if bool(mask.all()) else mask.to(device),
            next_position=(positions.amax((0, 2)) + 1).to(device),
            inputs=inputs or None,
        )


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


def _distinct_contexts(requests: Sequence[Request]) -> tuple[list[Request], Tensor]:
    """The first request of each distinct context, and for each request `[B]` which of them it shares.

    Contexts are the same if their tokens are, and their further inputs are the very same tensors.
    """
    first, row = distinct([(each.tokens, *map(id, each.inputs.values())) for each in requests])
    return [requests[i] for i in first.tolist()], row


def _positions(request: Request, axes: int) -> Tensor:
    """`[A, L]`: those that the prompt brings, and one more for each further token."""
    known = request.inputs.get("positions")
    if known is None:
        return torch.arange(len(request.tokens)).expand(axes, -1)
    known = known.cpu()
    after = known.max() + 1 + torch.arange(len(request.tokens) - known.shape[1])
    return torch.cat([known, after.expand(axes, -1)], 1)


def _select(cache: Any, rows: Tensor, count: int, streams: int) -> None:
    """Keep the states of the sequences at `rows` `[b]`, which may repeat some, of `count`."""
    from unirl_env.models.shared.cache import select_rows

    select_rows(cache, torch.cat([rows + count * stream for stream in range(streams)]))
