"""From scored episodes to what learners train on: advantages of phases, epochs, minibatches, shares."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.dealing import spread, work_of
from unirl_env.agents.kinds import KINDS
from unirl_env.agents.phases import phase_scales
from unirl_env.agents.rows import Shard
from unirl_env.episode import EpisodeBatch, Phase
from unirl_env.errors import ContractError, ShapeError
from unirl_env.functional import TokenStep


def credit(batch: EpisodeBatch, config: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The advantages of each trained phase.

    All phases of an episode share its reward, unless `phase_rewards` names a part of the scores for one. With
    `advantage_parts` the reward stays a vector until here: each named part is normalised within its group,
    and the normalised parts are added by their weights (GDPO).

    Args:
        batch: B episodes.
        config: An `AgentConfig`.

    Returns:
        By phase, advantages `[B]` and whether they are valid `[B]`; `step_credit` says where those of the
        steps of an episode differ.

    Raises:
        ContractError: If a setting names a part that the scorer does not give.
    """
    advantages, valid = {}, {}
    for phase in config.trained:
        valid[phase] = batch.scores.valid
        if config.advantage_parts and phase not in config.phase_rewards:
            parts = {name: _score_part(batch, name, "advantage_parts") for name in config.advantage_parts}
            for part in parts.values():
                valid[phase] = valid[phase] & torch.isfinite(part)
            advantages[phase] = F.gdpo_advantages(
                parts, batch.group, config.advantage_parts, valid[phase], clip=config.advantage_clip
            )
            continue
        rewards = rewards_of(batch, phase, config)
        valid[phase] = valid[phase] & torch.isfinite(rewards)
        advantages[phase] = _of_one(rewards, batch.group, valid[phase], config)
    return advantages, valid


def rewards_of(batch: EpisodeBatch, phase: str, config: Any) -> Tensor:
    """What a phase is paid for in each of B episodes `[B]`: the reward, or the part of it that it has."""
    if phase not in config.phase_rewards:
        return batch.rewards
    return _score_part(batch, config.phase_rewards[phase], "phase_rewards")


def largest(advantages: Tensor) -> Tensor:
    """The size `[B]` of each episode's advantage, of `[B]`, or of its largest step of `[B, S]`."""
    return advantages.abs() if advantages.ndim == 1 else advantages.abs().amax(1)


def misread(batch: EpisodeBatch, std: float) -> EpisodeBatch:
    """The episodes with noise on their recorded log-probs, as another engine or precision would leave.

    Args:
        batch: B episodes.
        std: Of normal noise that is keyed by episode, phase and step, in units of the log-probs; 0 is none.
    """
    if not std:
        return batch
    phases = {}
    for name, phase in batch.phases.items():
        salt = F.derive_seed("log-prob noise", name)
        noise = F.keyed_noise(batch.episode_seed ^ salt, 0, phase.log_prob.shape[1:]).to(phase.log_prob)
        noisy = torch.where(phase.mask, phase.log_prob + std * noise, phase.log_prob)
        if issubclass(KINDS[phase.kind].step, TokenStep):
            # Engines err, but none says that a token is more than certain, and losses would refuse it.
            noisy = noisy.clamp_max(0.0)
        phases[name] = replace(phase, log_prob=noisy)
    return replace(batch, phases=phases)


def _of_one(rewards: Tensor, group: Tensor, valid: Tensor, config: Any) -> Tensor:
    if config.advantage_scale == "leave_one_out":
        found = F.leave_one_out_advantages(rewards, group, valid)
        bound = config.advantage_clip
        return found if bound is None else found.clamp(-bound, bound)
    return F.group_advantages(
        rewards, group, scale=config.advantage_scale, valid=valid, clip=config.advantage_clip
    )


def _score_part(batch: EpisodeBatch, name: str, setting: str) -> Tensor:
    parts: Mapping[str, Tensor] = batch.scores.parts
    if name in parts:
        return parts[name]
    if not batch.scores.valid.any():
        # A scorer that failed on the whole batch has no parts, and says nothing about the setting.
        return torch.full_like(batch.rewards, torch.nan)
    raise ContractError(
        f"`{setting}` must name parts of the scores, got {name!r}; there are {', '.join(parts) or 'none'}."
    )


def share_out(
    batch: EpisodeBatch,
    advantages: Mapping[str, Tensor],
    valid: Mapping[str, Tensor] | None = None,
    *,
    num_minibatches: int,
    num_learners: int,
    num_epochs: int = 1,
    shuffle: str | None = None,
    seed: int = 0,
    aggregate: str = "token_mean",
    horizon: int | None = None,
    mask_truncated: bool = False,
    idle_episodes: str = "count",
    iteration: int = 0,
    kl_scales: Mapping[str, Tensor] | None = None,
    phase_scale: str = "mean",
    passed_over: Collection[str] = (),
) -> list[Shard]:
    """Cut the episodes into minibatches in every epoch, and deal each minibatch to the learners by its work.

    The transitions of an episode whose score is invalid are masked out. An episode travels to a learner once,
    whatever the number of epochs, and so does a context that several episodes share. Phases without
    advantages are not trained and stay behind.

    Args:
        batch: B episodes.
        advantages: Of each trained phase, `[B]` or `[B, S]`.
        valid: Of each trained phase, `[B]` bool, where its advantages mean something; None where scores do.
        num_minibatches: N, optimizer steps of an epoch.
        num_learners: L; 0 counts as 1.
        num_epochs: E, passes over the episodes; see `optimizer_steps` for this and the next two.
        shuffle: None, `"group"` or `"episode"`.
        seed: The key of the shuffle.
        aggregate: How transitions of episodes of unequal length are weighed; see `F.token_weights`.
        horizon: For `aggregate="horizon"`.
        mask_truncated: Leave out episodes that the length limit ended, too.
        idle_episodes: "count" keeps episodes of advantage 0 (in all steps) in the denominators; "leave_out"
            leaves them out of the phase as if they had not been drawn.
        iteration: The iteration's number, from 0.
        kl_scales: Of phases whose returns are charged, what the KL of each step counts `[B, S]`.
        phase_scale: "nats" weighs phases by the nats of their actions; see `phases.phase_scales`.
        passed_over: Phases whose episodes of advantage 0 cost nothing; see `phases.passes_over_idle`.

    Raises:
        ShapeError: If B is not divisible by N x L, or a minibatch cannot hold whole groups and should.
    """
    learners = max(1, num_learners)
    if len(batch) % (num_minibatches * learners):
        raise ShapeError(
            f"An iteration's episodes must divide evenly into {num_minibatches} minibatches x {learners} "
            f"learners, got {len(batch)}."
        )
    gone = ~batch.scores.valid
    if mask_truncated and batch.truncated is not None:
        gone = gone | batch.truncated.cpu()
    phases = {
        name: _without(phase, gone if valid is None else gone | ~valid[name])
        for name, phase in batch.phases.items()
        if name in advantages
    }
    if idle_episodes == "leave_out":
        phases = {
            name: _without(phase, largest(advantages[name].cpu()) == 0) for name, phase in phases.items()
        }
    advantages = {name: advantages[name] for name in phases}
    steps = optimizer_steps(
        batch.group, num_minibatches=num_minibatches, num_epochs=num_epochs, shuffle=shuffle, seed=seed
    )
    weights, denominators = _weighed(phases, steps, aggregate, horizon)
    everything = Shard(
        phases,
        batch.group,
        batch.episode_seed,
        advantages,
        tuple(steps),
        weights,
        tuple(denominators),
        iteration,
        kl_scales={name: scale for name, scale in (kl_scales or {}).items() if name in phases},
        phase_scales=phase_scales(phases, steps, weights, denominators) if phase_scale == "nats" else (),
        kept=batch.kept,
        places=torch.arange(len(batch)),
    )
    if learners == 1:
        return [everything]
    busy = {
        name: _without(phase, largest(advantages[name].cpu()) == 0) if name in passed_over else phase
        for name, phase in phases.items()
    }
    return [_part(everything, share) for share in spread(steps, learners, work_of(busy, batch.group))]


def _weighed(
    phases: Mapping[str, Phase], steps: Sequence[Tensor], aggregate: str, horizon: int | None
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """What each transition of an episode counts, by phase, and each optimizer step's denominators."""
    weights = {name: torch.ones(len(phase)) for name, phase in phases.items()}
    denominators: list[dict[str, float]] = [{} for _ in steps]
    for name, phase in phases.items():
        lengths = phase.mask.cpu().sum(1)
        for number, index in enumerate(steps):
            weights[name][index], denominators[number][name] = F.token_weights(
                lengths[index], aggregate if phase.ragged else "token_mean", horizon
            )
    return weights, denominators


def _part(whole: Shard, steps: Sequence[Tensor]) -> Shard:
    """The share of whoever takes the episodes `steps` of a whole iteration."""
    index = torch.cat(list(steps)).unique()
    return replace(
        whole,
        phases={name: phase.select(index) for name, phase in whole.phases.items()},
        group=whole.group[index],
        episode_seed=whole.episode_seed[index],
        advantages={name: each[index] for name, each in whole.advantages.items()},
        steps=tuple(torch.searchsorted(index, part) for part in steps),
        weights={name: weight[index] for name, weight in whole.weights.items()},
        kl_scales={name: scale[index] for name, scale in whole.kl_scales.items()},
        kept=None if whole.kept is None else whole.kept.select(index),
        places=index,
    )


def _without(phase: Phase, gone: Tensor) -> Phase:
    """The phase with the transitions of the episodes `gone` `[B]` masked out."""
    if not gone.any():
        return phase
    return replace(phase, mask=phase.mask & ~gone.to(phase.mask.device)[:, None])


def optimizer_steps(
    group: Tensor, *, num_minibatches: int, num_epochs: int = 1, shuffle: str | None = None, seed: int = 0
) -> list[Tensor]:
    """The episodes of each optimizer step: every epoch is a pass over all of them.

    A minibatch is a set: its episodes come in ascending order, so that members of a group stay together and
    share what they have in common. The first epoch is shuffled like the others.

    Args:
        group: `[B]`, the group of each episode.
        num_minibatches: N, optimizer steps of an epoch.
        num_epochs: E, passes over the episodes.
        shuffle: What is dealt out anew in each epoch: `"group"`s, `"episode"`s, or None for contiguous parts.
        seed: The key of the shuffle; with the epoch's number it decides everything.

    Returns:
        E x N index tensors `[B / N]` on the CPU.

    Raises:
        ShapeError: If B is not divisible by N, or a border would cut a group that is to stay whole.
    """
    count = len(group)
    if count % num_minibatches:
        raise ShapeError(
            f"An iteration's episodes must divide evenly into {num_minibatches} minibatches, got {count}."
        )
    steps: list[Tensor] = []
    for epoch in range(num_epochs):
        order = _order(group.cpu(), shuffle, F.derive_seed(seed, epoch))
        parts = order.view(num_minibatches, -1)
        if shuffle == "group" and sum(len(group[part].unique()) for part in parts) != len(group.unique()):
            raise ShapeError(
                f"Minibatches of {parts.shape[1]} episodes must hold whole groups to be shuffled by 'group', "
                "got one that a border cuts; try shuffling by 'episode', or another number of minibatches."
            )
        steps += [part.sort().values for part in parts]
    return steps


def _order(group: Tensor, shuffle: str | None, seed: int) -> Tensor:
    """The episodes in the order in which they are dealt out."""
    if shuffle is None:
        return torch.arange(len(group))
    generator = torch.Generator().manual_seed(seed)
    if shuffle == "episode":
        return torch.randperm(len(group), generator=generator)
    groups, member = group.unique(return_inverse=True)
    return torch.randperm(len(groups), generator=generator)[member].argsort(stable=True)
