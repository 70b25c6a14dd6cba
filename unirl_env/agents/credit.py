"""Who is paid for what: rewards of episodes as advantages of their phases."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import unirl_env.functional as F
from unirl_env.episode import EpisodeBatch
from unirl_env.errors import ContractError

__all__ = ["credit"]


def credit(batch: EpisodeBatch, config: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The advantages of each trained phase.

    All phases of an episode share its reward, unless `phase_rewards` names a part of the scores for one.

    Args:
        batch: B episodes.
        config: An `AgentConfig`.

    Returns:
        By phase, advantages `[B]` and whether they are valid `[B]`.

    Raises:
        ContractError: If `phase_rewards` names a part that the scorer does not give.
    """
    advantages, valid = {}, {}
    for phase in config.trained:
        rewards, valid[phase] = batch.rewards, batch.scores.valid
        if phase in config.phase_rewards:
            name = config.phase_rewards[phase]
            if name not in batch.scores.parts:
                raise ContractError(
                    f"`phase_rewards` must name parts of the scores, got {name!r} for {phase!r}; there are "
                    f"{', '.join(batch.scores.parts) or 'none'}."
                )
            rewards = batch.scores.parts[name]
            valid[phase] = valid[phase] & torch.isfinite(rewards)
        advantages[phase] = F.group_advantages(
            rewards,
            batch.group,
            scale=config.advantage_scale,
            valid=valid[phase],
            clip=config.advantage_clip,
        )
    return advantages, valid
