"""The correction for who sampled: advantages by the importance weights of the learner's policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.kinds import KINDS
from unirl_env.agents.reports import Update
from unirl_env.agents.rows import Shard
from unirl_env.errors import ConfigError
from unirl_env.models.shared.loading import as_dtype


def rounds_apart(config: Any) -> bool:
    """Whether whoever samples rounds otherwise than the learner that scores, so that no ratio begins at one.

    Engines do. In half precision so do texts: they are sampled a token at a time behind a cache, and scored
    whole, side by side.

    Args:
        config: An `AgentConfig`.
    """
    if config.engine != "local":
        return True
    if config.trained_kinds != ("tokens",):
        return False
    return as_dtype("dtype", config.env_options().get("dtype", torch.float32)).itemsize < 4


def corrected(
    replayed: Shard,
    recorded: Shard,
    minibatches: Sequence[Mapping[str, Sequence[Tensor]]],
    config: Any,
    report: Update,
) -> Shard:
    """The shard with each advantage times the weight `pi / mu` of its step or episode; notes what was cut.

    Args:
        replayed: With the learner's log-probs before the first optimizer step, pi.
        recorded: With those of whoever sampled, mu.
        minibatches: The micro-batches of each optimizer step: what was replayed.
        config: An `AgentConfig`.
        report: Gets the weights' sum, how many were cut, and of how many rows.
    """
    advantages = dict(replayed.advantages)
    for name, phase in replayed.phases.items():
        busy = [index for minibatch in minibatches for index in minibatch[name]]
        if not busy or not config.losses[phase.kind].scores or name in replayed.noised:
            continue  # nothing that was played has been replayed
        weight, cut = F.correction_weights(
            phase.log_prob,
            recorded.phases[name].log_prob,
            how=config.correcting,
            level=config.correction_level or config.own_correction_level,
            bound=config.correction_bound,
            mask=phase.mask,
            elements=phase.elements if KINDS[phase.kind].per_element else 1,
        )
        own = advantages[name]
        advantages[name] = weight * (own[:, None] if own.ndim == 1 else own)
        seen = torch.cat(busy).unique().to(phase.mask.device)
        mask = phase.mask[seen]
        report.phases[name].correction = {
            "weight": float(weight[seen][mask].sum()),
            "cut": float(cut[seen][mask].sum()),
            "rows": float(mask.sum()),
        }
    return replace(replayed, advantages=advantages)


def check_correction(config: Any) -> None:
    """Refuse a correction of what nothing is known about.

    Args:
        config: An `AgentConfig`.

    Raises:
        ConfigError: Naming the settings and the remedy.
    """
    if config.correction in (None, "none"):
        return
    if config.old_log_probs != "replay":
        raise ConfigError(
            f"`correction` must be none or null where old log-probs are the rollout's (`anchor`), got "
            f"{config.correction!r}: ratios are then taken against the policy that sampled, and correct "
            "for it themselves; try anchor='replay'."
        )
    kinds = config.trained_kinds
    if config.looks_forward and kinds == ("latents",):
        raise ConfigError(
            f"`correction` must be none where finished latents are scored (`estimator` "
            f"{config.estimating!r}), got {config.correction!r}: no step's probability was "
            "recorded; try none."
        )
    blind = [kind for kind in kinds if not config.losses[kind].scores]
    if len(blind) == len(kinds):
        raise ConfigError(
            f"`correction` must be none for a loss that does not use log-probs, as "
            f"{config.losses[blind[0]].name}, got {config.correction!r}: none are replayed to be "
            "compared; try none."
        )
