"""The phases of an agent: which are trained, and what a nat of one weighs beside a nat of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from unirl_env.agents.kinds import KINDS
from unirl_env.agents.loss import check_loss
from unirl_env.episode import Phase
from unirl_env.errors import ConfigError


def phase_scales(
    phases: Mapping[str, Phase],
    steps: Sequence[Tensor],
    weights: Mapping[str, Tensor],
    denominators: Sequence[Mapping[str, float]],
) -> tuple[dict[str, float], ...]:
    """What each phase's loss is multiplied by, so that a nat is a nat whichever phase it is of.

    A loss is a sum over rows of weight times (nats of an action / E), divided by N; E is D for latents, whose
    log-probs are means over the D elements, and 1 for everything else. So a nat of the phase's actions counts
    w / (E N) in it, with w the mean weight of its rows, and would count as much as one of another phase if
    both were multiplied by their E N / w. That of the first phase with E = 1 is kept: with tokens under
    `token_mean` and latents of S steps, the factor of latents is S D / L, where L is the trained tokens of
    the mean text (`horizon` in its place under that `aggregate`). A step of the picture then counts as one
    more token would, with all of its nats.

    Args:
        phases: The trained phases of all episodes.
        steps: The episodes of each optimizer step.
        weights: Per phase `[B]`, what each transition of an episode counts.
        denominators: Per optimizer step and phase.

    Returns:
        Per optimizer step, the factor of each phase; 1 for one without rows.
    """
    found = []
    for number, index in enumerate(steps):
        nats: dict[str, float] = {}
        for name, phase in phases.items():
            lengths = phase.mask.cpu()[index].sum(1).float()
            counted = float((weights[name].cpu()[index] * lengths).sum())
            if counted > 0:
                elements = phase.elements if KINDS[phase.kind].per_element else 1
                nats[name] = denominators[number][name] * elements * float(lengths.sum()) / counted
        plain = [name for name in nats if not KINDS[phases[name].kind].per_element]
        unit = nats[next(iter(plain or nats))] if nats else 1.0
        found.append({name: nats[name] / unit if name in nats else 1.0 for name in phases})
    return tuple(found)


def has_entropy(kind: str) -> bool:
    """Whether steps of a kind of phase say the entropy of what acted, which may then be rewarded."""
    return "entropy" in getattr(KINDS[kind].step, "_fields", ())


def passes_over_idle(config: Any, kind: str) -> bool:
    """Whether learners leave out episodes of advantage 0: the loss allows it, no other term touches them."""
    touched = config.reference_kl or rewards_entropy(config, kind)
    return config.losses[kind].may_skip_idle(config) and not touched


def rewards_entropy(config: Any, kind: str) -> bool:
    """Whether the entropy of steps of a kind is paid for."""
    return config.entropy_bonus > 0 and has_entropy(kind)


def _check_routing(config: Any) -> None:
    """Refuse to replay choices of experts that nobody records.

    Raises:
        ConfigError: If an engine returns none, or what is trained are no tokens.
    """
    if not config.policy.replay_routing:
        return
    if config.engine != "local":
        raise ConfigError(
            f"`policy.replay_routing` must be false with engine {config.engine!r}, which does not return "
            "which experts it chose, got true; try rollout.engine=local."
        )
    kinds = config.mode.phases(config)
    others = [name for name in config.trained if kinds.get(name) != "tokens"]
    if others:
        raise ConfigError(
            f"`policy.replay_routing` must be false where phase {others[0]!r} is trained, got true: choices "
            "of experts are recorded of texts alone, a picture has thousands of tokens in every step; try "
            "agent.train_phases=[text]."
        )


def check_phases(config: Any) -> None:
    """Refuse settings that name phases which are not there, or that no loss of the agent is made for.

    Raises:
        ConfigError: Naming the setting, its value and the remedy.
    """
    phases = config.mode.phases(config)
    named = {
        "train_phases": phases if config.train_phases is None else config.train_phases,
        "phase_rewards": config.phase_rewards,
        "phase_weights": config.phase_weights,
        "phase_lrs": config.phase_lrs,
    }
    for name, chosen in named.items():
        if any(phase not in phases for phase in chosen):
            raise ConfigError(
                f"`{name}` must name phases of {config.env}, which has {', '.join(phases)}, got "
                f"{list(chosen)}."
            )
    for kind in config.trained_kinds:
        if kind not in config.losses:
            about = f" ({KINDS[kind].about})" if KINDS[kind].about else ""
            known = [phase for phase in config.trained if phases[phase] in config.losses]
            remedy = f"train_phases={known}, or another agent" if known else "another agent"
            raise ConfigError(
                f"The agent must have a loss on {kind}{about}, which {config.env} trains, got losses on "
                f"{sorted(config.losses)}; try {remedy}."
            )
        check_loss(config, kind)
    _check_scale(config)
    _check_entropy(config)
    _check_routing(config)


def _check_scale(config: Any) -> None:
    if config.phase_scale != "mean" and len(config.trained) == 1:
        raise ConfigError(
            f"`phase_scale` must be 'mean' where one phase is trained, got {config.phase_scale!r}: there is "
            "no other one to be weighed against; try `lr`."
        )


def _check_entropy(config: Any) -> None:
    kinds = config.trained_kinds
    if config.entropy_bonus and not any(has_entropy(kind) for kind in kinds):
        raise ConfigError(
            f"`entropy_bonus` must be 0 where {' and '.join(kinds)} alone are trained, got "
            f"{config.entropy_bonus:g}: the schedule fixes the standard deviation of a step, and so its "
            "entropy; try a larger `policy.eta`."
        )
