"""Who is paid for what: rewards of episodes as advantages of their phases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import unirl_env.functional as F
from unirl_env.episode import EpisodeBatch
from unirl_env.errors import ContractError

__all__ = ["credit"]


def credit(batch: EpisodeBatch, config: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The advantages of each trained phase.

    All phases of an episode share its reward, unless `phase_rewards` names a part of the scores for one. With
    `advantage_parts` the reward stays a vector until here: each named part is normalised within its group,
    and the normalised parts are added by their weights (GDPO).

    Args:
        batch: B episodes.
        config: An `AgentConfig`.

    Returns:
        By phase, advantages `[B]` and whether they are valid `[B]`.

    Raises:
        ContractError: If a setting names a part that the scorer does not give.
    """
    advantages, valid = {}, {}
    for phase in config.trained:
        valid[phase] = batch.scores.valid
        if config.advantage_parts and phase not in config.phase_rewards:
            parts = {name: _part(batch, name, "advantage_parts") for name in config.advantage_parts}
            for part in parts.values():
                valid[phase] = valid[phase] & torch.isfinite(part)
            advantages[phase] = F.gdpo_advantages(
                parts, batch.group, config.advantage_parts, valid[phase], clip=config.advantage_clip
            )
            continue
        rewards = batch.rewards
        if phase in config.phase_rewards:
            rewards = _part(batch, config.phase_rewards[phase], "phase_rewards")
            valid[phase] = valid[phase] & torch.isfinite(rewards)
        advantages[phase] = _of_one(rewards, batch.group, valid[phase], config)
    return advantages, valid


def _of_one(rewards: Tensor, group: Tensor, valid: Tensor, config: Any) -> Tensor:
    if config.advantage_scale == "leave_one_out":
        found = F.leave_one_out_advantages(rewards, group, valid)
        bound = config.advantage_clip
        return found if bound is None else found.clamp(-bound, bound)
    return F.group_advantages(
        rewards, group, scale=config.advantage_scale, valid=valid, clip=config.advantage_clip
    )


def _part(batch: EpisodeBatch, name: str, setting: str) -> Tensor:
    parts: Mapping[str, Tensor] = batch.scores.parts
    if name in parts:
        return parts[name]
    if not batch.scores.valid.any():
        # A scorer that failed on the whole batch has no parts, and says nothing about the setting.
        return torch.full_like(batch.rewards, torch.nan)
    raise ContractError(
        f"`{setting}` must name parts of the scores, got {name!r}; there are {', '.join(parts) or 'none'}."
    )
