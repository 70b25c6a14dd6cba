"""Credit that differs between the steps of an episode: by the KL that is still to come, and by their noise.

With `kl_in="return"` the objective is `J = E[r] - reference_kl * KL`, in units of the reward and in nats of
whole episodes, over all phases that are trained. A step's return is the reward less the price of the KL that
comes after it, in its own phase and in those that follow; the step's own KL is exact, and in the loss. Both
are divided by one scale, so that J has the same optimum whatever `advantage_scale` says.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.batching import rewards_of
from unirl_env.agents.kinds import KINDS
from unirl_env.episode import EpisodeBatch, Phase
from unirl_env.errors import ConfigError

logger = logging.getLogger(__name__)


def charges_returns(config: Any) -> bool:
    """Whether the returns of an agent are charged with the KL to the untrained model."""
    return bool(config.kl_in == "return" and config.reference_kl)


def credit_steps(
    batch: EpisodeBatch,
    config: Any,
    advantages: Mapping[str, Tensor],
    valid: Mapping[str, Tensor],
    kls: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The advantages of each trained phase where those of the steps of an episode differ.

    Args:
        batch: B episodes.
        config: An `AgentConfig`.
        advantages: By phase `[B]`, as `credit` gives them.
        valid: By phase `[B]` bool, likewise.
        kls: By phase `[B, S]`, in nats of whole actions, what each step pays; nothing where returns are not
            charged.

    Returns:
        By phase, advantages `[B]` or `[B, S]`; and of phases whose returns are charged, what the KL of each
        step counts in the loss beside `reference_kl`, `[B, S]`.
    """
    found, scales = dict(advantages), {}
    charges = charges_of(kls, tuple(batch.phases), config.reference_kl)
    for name, charge in charges.items():
        if name not in found:
            continue
        found[name], scales[name] = F.charged_advantages(
            rewards_of(batch, name, config),
            batch.group,
            charge,
            batch.phases[name].mask.cpu(),
            scale=config.advantage_scale,
            valid=valid[name],
            clip=config.advantage_clip,
        )
    if config.weighs_steps == "none":
        return found, scales
    for name in found:
        phase = batch.phases.get(name)
        if phase is None or phase.kind != "latents" or not phase.drawn:
            continue
        weight = _weights(phase, config)
        own = found[name]
        found[name] = weight * (own[:, None] if own.ndim == 1 else own)
        if name in scales:  # else the step's own KL would outweigh what it is balanced against
            scales[name] = scales[name] * weight
    return found, scales


def charges_of(kls: Mapping[str, Tensor], order: tuple[str, ...], price: float) -> dict[str, Tensor]:
    """What comes after each step costs, by phase `[B, S]` float64, in units of the reward.

    Args:
        kls: By phase `[B, S]`, what each step pays in nats; 0 where there is none.
        order: The phases in the order of an episode.
        price: Of a nat.
    """
    found: dict[str, Tensor] = {}
    later: Tensor | float = 0.0
    for name in reversed([name for name in order if name in kls]):
        paid = kls[name].double()
        ahead = paid.flip(1).cumsum(1).flip(1)
        beyond = torch.zeros_like(ahead[:, :1])
        found[name] = price * (torch.cat([ahead[:, 1:], beyond], 1) + later)
        later = later + ahead[:, :1]
    return found


def step_stds(phase: Phase, policy: Any) -> Tensor:
    """The standard deviation `[B, S]` float32 of the noise of each step of latents that was played.

    Args:
        phase: Of latents, with their sigmas.
        policy: `PolicySettings`, whose kernel acted.
    """
    sigma, sigma_next = _sigmas(phase)
    here = torch.zeros(*sigma.shape, 1)
    return F.transition(here, here, sigma, sigma_next, dynamics=policy.dynamics, eta=policy.eta)[1]


def _weights(phase: Phase, config: Any) -> Tensor:
    """How much steps `[B, S]` count, by the std of their noise or by the inverse of their length."""
    mask = phase.mask.cpu()
    if config.weighs_steps == "inverse_length":
        sigma, sigma_next = _sigmas(phase)
        return F.step_weights(1.0 / torch.where(mask, sigma - sigma_next, 1.0), mask)
    return F.step_weights(step_stds(phase, config.policy), mask)


def _sigmas(phase: Phase) -> tuple[Tensor, Tensor]:
    """Where steps `[B, S]` begin and end."""
    return phase.observation["sigma"].cpu().float(), phase.observation["sigma_next"].cpu().float()


def check_step_credit(config: Any) -> None:
    """Refuse step credit that would do nothing, or cannot be had.

    Args:
        config: An `AgentConfig`.

    Raises:
        ConfigError: Naming the setting and the remedy.
    """
    kinds = config.trained_kinds
    steps = "latents" in kinds and not config.looks_forward and config.trained_steps(0)
    if config.step_weights not in (None, "none") and not steps:
        raise ConfigError(
            f"`step_weights` must be none where no step of latents is trained, got {config.step_weights!r}: "
            f"{config.env} trains {', '.join(sorted(kinds))} by the estimator {config.estimating!r}, and "
            "there is no noise to be weighed by; try none."
        )
    if not charges_returns(config):
        return
    if config.looks_forward and "latents" in kinds:
        raise ConfigError(
            f"`kl_in` must be loss where finished latents are scored (`estimator` {config.estimating!r}), "
            "got 'return': no step pays anything; try loss, or estimator='trajectory'."
        )
    for kind in sorted(kinds):
        if KINDS[kind].nats is None:
            raise ConfigError(
                f"`kl_in` must be loss for phases of the kind {kind!r}, got 'return': its `PhaseKind` does "
                "not say in `nats` what a step pays; try loss."
            )


def warn_of_idle_clip(config: Any) -> None:
    """Say so if no advantage can be as large as `advantage_clip`: it would seem to bound something."""
    largest = math.sqrt(max(0, config.group_size - 1))
    parts = config.advantage_parts and set(config.trained) - set(config.phase_rewards)
    if config.advantage_clip is None or config.advantage_scale != "group" or parts or charges_returns(config):
        return
    if config.advantage_clip >= largest:
        logger.warning(
            "`advantage_clip` is %g, and no advantage of a group of %d can exceed sqrt(%d) = %.3g under "
            "`advantage_scale` 'group': it does nothing. Try a smaller one, or None.",
            *(config.advantage_clip, config.group_size, config.group_size - 1, largest),
        )
