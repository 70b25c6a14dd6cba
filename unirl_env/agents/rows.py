"""What a learner is given and what a loss sees of it: shards and rows.

A `Shard` is one learner's share of an iteration: whole episodes. Of a micro-batch of them, a `PhaseKind` of
`agents.kinds` makes `Rows`: transitions, flat, whatever their phase.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from unirl_env.episode import Kept, Phase
from unirl_env.errors import ContractError, ShapeError
from unirl_env.functional import SDEStep, TokenStep
from unirl_env.policies.distributions import ActionStep
from unirl_env.policies.packing import pack_continuations

Step = SDEStep | TokenStep | ActionStep


@dataclass(frozen=True)
class Shard:
    """One learner's share of an iteration.

    Attributes:
        phases: The trained phases, of the b episodes that it ever takes, each once.
        group: `[b]` int64, the group of each episode, as the iteration numbers them.
        episode_seed: `[b]` int64, the key of each episode.
        advantages: Per phase float32, `[b]` one per episode or `[b, S]` one per step.
        steps: For each optimizer step, which of the episodes it takes, ascending.
        weights: Per phase float32, what each transition of an episode counts, `[b]` or `[b, S]`.
        denominators: Per optimizer step and phase, what weighted sums are divided by; counts all learners'
            shares.
        iteration: The iteration's number, from 0.
        noised: The phases whose rows are finished latents noised anew, and not what was played.
        branching: The phases in whose rows a prompt that episodes share stands once; the learner knows, which
            has the network.
        kl_scales: Per phase `[b, S]` float32, what the KL of each step to the untrained model is multiplied
            with; 1 for phases that it does not have.
        phase_scales: Per optimizer step and phase, what the loss is multiplied by; empty for 1.
        kept: Where the large tensors of the phases are, if those have shapes alone.
        places: `[b]` int64 on the CPU, the place of each episode in the iteration's batch.
    """

    phases: Mapping[str, Phase]
    group: Tensor
    episode_seed: Tensor
    advantages: Mapping[str, Tensor]
    steps: tuple[Tensor, ...]
    weights: Mapping[str, Tensor]
    denominators: tuple[Mapping[str, float], ...]
    iteration: int = 0
    noised: frozenset[str] = frozenset()
    branching: frozenset[str] = frozenset()
    kl_scales: Mapping[str, Tensor] = field(default_factory=dict)
    phase_scales: tuple[Mapping[str, float], ...] = ()
    kept: Kept | None = None
    places: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.group)

    def to(self, device: torch.device | str) -> Shard:
        """The same share on `device`."""
        here = {
            name: p if p.mask.device == torch.device(device) else p.to(device)
            for name, p in self.phases.items()
        }
        return replace(
            self,
            phases=here,
            group=self.group.to(device),
            episode_seed=self.episode_seed.to(device),
            advantages={name: each.to(device) for name, each in self.advantages.items()},
            weights={name: weight.to(device) for name, weight in self.weights.items()},
            kl_scales={name: scale.to(device) for name, scale in self.kl_scales.items()},
        )


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
        old_velocity: `[N, ...]` of the policy that sampled, at noised latents; None where the loss does not
            need `"velocity"`.
        advantages: `[N]`, the episode's own, or the step's.
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
        kl_scale: `[N]`, what the KL to the untrained model counts in each row; None for 1.
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
    old_velocity: Tensor | None = None
    kl_scale: Tensor | None = None

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
            old_velocity=of(self.old_velocity),
            kl_scale=of(self.kl_scale),
        )

    def by_steps(self, steps: int | None, total: int) -> list[Rows]:
        """The same rows in parts of `steps` of each episode's `total` steps; all at once with None.

        Rows of tokens and of actions stay together. Rows that count nothing are as many parts, too, so that
        learners which divide a network pass through it equally often.
        """
        if steps is None or steps >= total or self.kind != "latents":
            return [self]
        if not self.mask.any():
            return [self] * math.ceil(total / steps)
        part = self.step // steps
        return [self.select(part == number) for number in range(math.ceil(total / steps))]

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


def rows_at(
    shard: Shard,
    name: str,
    episode: Tensor,
    step: Tensor,
    denominator: float,
    *,
    observation: Mapping[str, Tensor],
    action: Tensor,
    mask: Tensor | None = None,
) -> Rows:
    """The rows of N transitions of a phase, with all that does not depend on its kind.

    Args:
        shard: Where they are.
        name: Of the phase.
        episode: `[N]` int64, the episode of each.
        step: `[N]` int64, its place in the episode.
        denominator: Of the optimizer step.
        observation: What the policy is to see of them.
        action: `[N, ...]`.
        mask: `[N]` bool, which are trained on; None for all.
    """
    phase = shard.phases[name]
    told = None if phase.mean is None else phase.mean[episode, step]
    return Rows(
        kind=phase.kind,
        observation=observation,
        action=action,
        episode=episode,
        step=step,
        old_log_prob=phase.log_prob[episode, step],
        old_mean=None if name in shard.noised else told,
        advantages=_of_rows(shard.advantages[name], episode, step),
        weight=_of_rows(shard.weights[name], episode, step),
        mask=torch.ones_like(episode, dtype=torch.bool) if mask is None else mask,
        denominator=denominator,
        final=None if phase.final is None else phase.final[episode],
        group=shard.group.to(episode.device)[episode],
        episode_seed=shard.episode_seed.to(episode.device)[episode],
        shared=frozenset(phase.context),
        old_velocity=told if name in shard.noised else None,
        kl_scale=_of_rows(shard.kl_scales[name], episode, step) if name in shard.kl_scales else None,
    )


def _of_rows(values: Tensor, episode: Tensor, step: Tensor) -> Tensor:
    """What N rows have of values of episodes `[b]` or of steps `[b, S]`."""
    return values[episode] if values.ndim == 1 else values[episode, step]


def latent_rows(shard: Shard, name: str, index: Tensor, denominator: float) -> Rows:
    """The rows of the episodes at `index` `[b]` of a phase with S steps each: b x S of them."""
    phase = shard.phases[name]
    steps = phase.log_prob.shape[1]
    episode = index.repeat_interleave(steps)
    step = torch.arange(steps, device=index.device).repeat(len(index))
    observation = {key: tensor[episode, step] for key, tensor in phase.observation.items()}
    if phase.context_row is not None:
        row, observation["context_row"] = torch.unique(phase.context_row[episode], return_inverse=True)
        observation |= {key: tensor[row] for key, tensor in phase.context.items()}
    return rows_at(
        shard,
        name,
        episode,
        step,
        denominator,
        observation=observation,
        action=phase.action[episode, step],
        mask=phase.mask[episode, step],
    )


def flat_rows(shard: Shard, name: str, index: Tensor, denominator: float) -> Rows:
    """The unmasked transitions of the episodes at `index` `[b]`, however many each has."""
    phase = shard.phases[name]
    at, step = phase.mask[index].nonzero(as_tuple=True)
    episode = index[at]
    observation = {key: tensor[episode, step] for key, tensor in phase.observation.items()}
    if phase.context_row is not None:
        row = phase.context_row[episode]
        observation |= {key: tensor[row] for key, tensor in phase.context.items()}
    action = phase.action[episode, step]
    return rows_at(shard, name, episode, step, denominator, observation=observation, action=action)


def token_rows(shard: Shard, name: str, index: Tensor, denominator: float) -> Rows:
    """The trained tokens of the episodes at `index` `[b]`, which travel as one packed row."""
    packed = pack_continuations(shard.phases[name], index, branching=name in shard.branching)
    return rows_at(
        shard,
        name,
        packed.episode,
        packed.step,
        denominator,
        observation=packed.observation,
        action=packed.action,
    )
