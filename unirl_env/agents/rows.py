"""What a loss sees of a micro-batch: transitions of several episodes, flat, whatever their phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from unirl_env.agents.shards import Shard
from unirl_env.episode import Phase
from unirl_env.errors import ContractError, ShapeError
from unirl_env.policies.packing import pack_continuations, sequence_lengths

__all__ = [
    "Rows",
    "busy_rows",
    "completed",
    "flat_rows",
    "latent_lots",
    "latent_rows",
    "token_lots",
    "token_rows",
]


@dataclass(frozen=True)
class Rows:
    """N transitions of a micro-batch, flat over episodes and steps: what a loss sees besides the new step.

    A micro-batch is an accident of memory: what a loss says of a row must not depend on which others it sees.

    Attributes:
        kind: The kind of the phase, a name in `KINDS`.
        observation: Inputs of the policy: for latents each `[N, ...]`, and contexts once each with
            `context_row` `[N]`; for tokens a packed row.
        action: `[N, ...]`.
        episode: `[N]` int64, the episode of each row, as this learner numbers them.
        step: `[N]` int64, its place in the episode's phase.
        old_log_prob: `[N]` under the policy that acted.
        old_mean: `[N, ...]`, or None where the loss does not need `"mean"`.
        advantages: `[N]`, the episode's own.
        weight: `[N]`, what a row counts in sums.
        mask: `[N]` bool, which rows are trained on.
        denominator: What weighted sums over rows are divided by; it counts the minibatch of all learners.
        final: `[N, ...]`, what the row's episode ended with (the finished latent, in its storage dtype), or
            None where the loss does not need `"final"`.
        group: `[N]` int64, the group of the row's episode, as the iteration numbers them.
        episode_seed: `[N]` int64, the key of the row's episode: what its random numbers follow from.
        draw: `[N]` int64, which of the `draws` of a repeated row this is.
        draws: How often rows were repeated.
        shared: The names in `observation` that hold one entry for each context, not for each row.
    """

    kind: str
    observation: Mapping[str, Tensor]
    action: Tensor
    episode: Tensor
    step: Tensor
    old_log_prob: Tensor
    old_mean: Tensor | None
    advantages: Tensor
    weight: Tensor
    mask: Tensor
    denominator: float
    final: Tensor | None = None
    group: Tensor | None = None
    episode_seed: Tensor | None = None
    draw: Tensor | None = None
    draws: int = 1
    shared: frozenset[str] = field(default_factory=frozenset)

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def weighted(self) -> Tensor:
        """`[N]` advantages times weights: for losses that are proportional to the advantage."""
        return self.advantages * self.weight

    def mean(self, values: Tensor) -> Tensor:
        """What a loss returns: the sum of `values` `[N]` over unmasked rows, by weight, over the denominator.

        Raises:
            ShapeError: If there is not one value for each row.
        """
        if tuple(values.shape) != tuple(self.mask.shape):
            raise ShapeError(f"`values` must be [{len(self)}], one per row, got {list(values.shape)}.")
        return torch.where(self.mask, values * self.weight, 0.0).sum() / self.denominator

    def select(self, index: Tensor) -> Rows:
        """The rows at `index` `[M]`, or where a bool `index` `[N]` is true; contexts stay shared.

        The denominator stays what it was: whoever leaves rows out must say so in what is summed.

        Raises:
            ContractError: If the rows are tokens, which travel as one packed row.
        """
        if self.kind == "tokens":
            raise ContractError("Rows of tokens are packed, and cannot be selected or repeated one by one.")

        def of(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[index]

        return replace(
            self,
            observation={k: t if k in self.shared else t[index] for k, t in self.observation.items()},
            action=self.action[index],
            episode=self.episode[index],
            step=self.step[index],
            old_log_prob=self.old_log_prob[index],
            old_mean=of(self.old_mean),
            advantages=self.advantages[index],
            weight=self.weight[index],
            mask=self.mask[index],
            final=of(self.final),
            group=of(self.group),
            episode_seed=of(self.episode_seed),
            draw=of(self.draw),
        )

    def repeat(self, draws: int) -> Rows:
        """Each row `draws` times in a row `[N * draws]`, for as many random draws of each.

        The denominator grows with them, so that means stay means over the same episodes.

        Raises:
            ContractError: If the rows are tokens, or `draws` is no whole number of at least 1.
        """
        if not isinstance(draws, int) or draws < 1:
            raise ContractError(f"`draws` must be a whole number of at least 1, got {draws!r}.")
        count, device = len(self), self.mask.device
        many = self.select(torch.arange(count, device=device).repeat_interleave(draws))
        draw = torch.arange(draws, device=device).repeat(count)
        if many.draw is not None:
            draw = many.draw * draws + draw
        return replace(many, draw=draw, draws=self.draws * draws, denominator=self.denominator * draws)

    def observed(self, **entries: Tensor) -> dict[str, Tensor]:
        """The rows' observation with `entries` in place of its own: what the network is to see instead.

        Args:
            **entries: Each `[N, ...]` like the entry that it replaces, `latent` and `sigma` for instance.

        Raises:
            ContractError: If the observation has no such entry for each row.
            ShapeError: If an entry has another shape than the one it replaces.
        """
        for name, entry in entries.items():
            own = None if name in self.shared else self.observation.get(name)
            if own is None:
                known = ", ".join(sorted(self.observation.keys() - self.shared))
                raise ContractError(f"`{name}` must be an entry of each row's observation; try {known}.")
            if entry.shape != own.shape:
                raise ShapeError(
                    f"`{name}` must be {list(own.shape)} like the rows' own, got {list(entry.shape)}."
                )
        return {**self.observation, **entries}


def completed(rows: Rows, shard: Shard, name: str) -> Rows:
    """Rows of phase `name` with what all kinds have alike: what their episodes ended with, and their keys."""
    phase, episode = shard.batch.phases[name], rows.episode
    return replace(
        rows,
        final=None if phase.final is None else phase.final[episode],
        group=shard.batch.group.to(episode.device)[episode],
        episode_seed=shard.batch.episode_seed.to(episode.device)[episode],
        shared=frozenset(phase.context),
    )


def latent_rows(shard: Shard, name: str, index: Tensor, denominator: float) -> Rows:
    """The rows of the episodes at `index` `[b]` of a phase with S steps each: b x S of them."""
    phase = shard.batch.phases[name]
    steps = phase.log_prob.shape[1]
    observation, action = phase.rows(index, shared=True)
    episode = index.repeat_interleave(steps)
    step = torch.arange(steps, device=index.device).repeat(len(index))
    return Rows(
        kind=phase.kind,
        observation=observation,
        action=action,
        episode=episode,
        step=step,
        old_log_prob=phase.log_prob[index].flatten(),
        old_mean=None if phase.mean is None else phase.mean[index].flatten(0, 1),
        advantages=shard.advantages[name][episode],
        weight=shard.weights[name][episode],
        mask=phase.mask[index].flatten(),
        denominator=denominator,
    )


def flat_rows(shard: Shard, name: str, index: Tensor, denominator: float) -> Rows:
    """The unmasked transitions of the episodes at `index` `[b]`, however many each has."""
    phase = shard.batch.phases[name]
    at, step = phase.mask[index].nonzero(as_tuple=True)
    episode = index[at]
    observation = {key: tensor[episode, step] for key, tensor in phase.observation.items()}
    if phase.context_row is not None:
        row = phase.context_row[episode]
        observation |= {key: tensor[row] for key, tensor in phase.context.items()}
    return Rows(
        kind=phase.kind,
        observation=observation,
        action=phase.action[episode, step],
        episode=episode,
        step=step,
        old_log_prob=phase.log_prob[episode, step],
        old_mean=None if phase.mean is None else phase.mean[episode, step],
        advantages=shard.advantages[name][episode],
        weight=shard.weights[name][episode],
        mask=torch.ones_like(episode, dtype=torch.bool),
        denominator=denominator,
    )


def token_rows(shard: Shard, name: str, index: Tensor, denominator: float) -> Rows:
    """The trained tokens of the episodes at `index` `[b]`, which travel as one packed row."""
    phase = shard.batch.phases[name]
    packed = pack_continuations(phase, index)
    return Rows(
        kind=phase.kind,
        observation=packed.observation,
        action=packed.action,
        episode=packed.episode,
        step=packed.step,
        old_log_prob=phase.log_prob[packed.episode, packed.step],
        old_mean=None,
        advantages=shard.advantages[name][packed.episode],
        weight=shard.weights[name][packed.episode],
        mask=torch.ones_like(packed.action, dtype=torch.bool),
        denominator=denominator,
    )


def busy_rows(phase: Phase, advantages: Tensor, *, skip_idle: bool) -> Tensor:
    """How many rows of each episode `[b]` have something to say, on the CPU.

    Args:
        phase: Whose mask `[b, S]` counts.
        advantages: `[b]`.
        skip_idle: Leave out episodes of advantage 0 too. Their gradient is exactly 0, as long as no other
            term of the loss touches them; they stay in the denominator.
    """
    count = phase.mask.sum(dim=1).cpu()
    return count * (advantages.cpu() != 0) if skip_idle else count


def latent_lots(phase: Phase, busy: Tensor, *, size: int | None, tokens: int | None) -> list[Tensor]:
    """The episodes `busy` in lots of at most `size`; None takes all at once."""
    return list(busy.split(size or len(busy))) if len(busy) else []


def token_lots(phase: Phase, busy: Tensor, *, size: int | None, tokens: int | None) -> list[Tensor]:
    """The episodes `busy` in lots of at most `size` episodes and `tokens` packed tokens; None bounds nothing.

    The longest come first, so that the episodes of a lot are of about one length. An episode that alone
    exceeds `tokens` is a lot of its own.
    """
    lengths = sequence_lengths(phase).cpu()[busy]
    order = lengths.argsort(descending=True, stable=True)
    lots: list[list[int]] = []
    room = 0
    for episode, length in zip(busy[order].tolist(), lengths[order].tolist(), strict=True):
        full = not lots or (size is not None and len(lots[-1]) == size)
        if full or (tokens is not None and length > room):
            lots.append([])
            room = tokens or 0
        lots[-1].append(episode)
        room -= length
    return [torch.tensor(lot) for lot in lots]
