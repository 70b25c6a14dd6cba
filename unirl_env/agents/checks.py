"""What an agent's settings must satisfy before anything is built."""

from __future__ import annotations

import logging
import math
from numbers import Real
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from unirl_env.agents.phases import KINDS
from unirl_env.agents.selfcheck import BOUNDS
from unirl_env.checks import check_fields, is_number, like_default, require, whole
from unirl_env.config_check import check_epochs
from unirl_env.errors import ConfigError
from unirl_env.functional.losses.terms import require_max_log_ratio
from unirl_env.policies.token_actor import check_sampling
from unirl_env.rollouts.engines import ENGINES

__all__ = [
    "check_latents",
    "check_settings",
    "check_tokens",
    "warn_of_idle_clip",
    "warn_of_settings",
]

logger = logging.getLogger(__name__)


def check_settings(config: Any) -> None:
    """Refuse settings that cannot work, alone or together.

    Args:
        config: An `AgentConfig`.

    Raises:
        ConfigError: Naming the setting, its value and the remedy.
    """
    for name in ("num_prompts", "group_size"):
        whole(name, getattr(config, name), 1)
    for name in ("rollout_batch_size", "micro_batch_size", "micro_batch_tokens"):
        if getattr(config, name) is not None:
            whole(name, getattr(config, name), 1)
    for name in ("lr", "warmup_iterations", "weight_decay", "reference_kl"):
        _at_least(config, name, 0)
    bounds = [setting for setting, _ in BOUNDS.values()]
    for name in ("grad_clip", "advantage_clip", *bounds):
        value = getattr(config, name)
        if value is not None and not (_is_real(value) and value > 0):
            raise ConfigError(f"`{name}` must be positive or None, got {value!r}.")
    _check_kinds(config)
    if config.grad_clip_by != "global_norm":
        raise ConfigError(
            f"`grad_clip_by` must be 'global_norm', got {config.grad_clip_by!r}: clipping each weight or "
            "value by itself turns the gradient; try 'global_norm' and `grad_clip`, which keep its direction."
        )
    _one_of(config, "anchor", (None, "rollout", "replay"))
    _one_of(config, "advantage_scale", ("group", "batch", "none", "leave_one_out"))
    _check_loss(config)
    _check_advantage_parts(config)
    _check_shares(config)
    config.mode.check(config)
    _check_phases(config)
    if config.evaluation_interval:
        raise ConfigError(
            f"`evaluation_interval` must stay unset, got {config.evaluation_interval}; try "
            "`agent.rollout_eval(prompts, seed=...)`, which compares the same samples every time."
        )


def _check_loss(config: Any) -> None:
    if config.kl_estimator == "k1":
        raise ConfigError(
            "`kl_estimator` must be k2 or k3, got 'k1': the mean of its gradient is 0, so that it would not "
            "pull at all; try 'k2'."
        )
    _one_of(config, "kl_estimator", ("k2", "k3"))
    _one_of(config, "idle_episodes", ("count", "leave_out"))
    for name in ("adam_epsilon", "max_log_ratio"):
        if not is_number(getattr(config, name)) or getattr(config, name) <= 0:
            raise ConfigError(f"`{name}` must be a positive number, got {getattr(config, name)!r}.")
    require_max_log_ratio(config.max_log_ratio)


def _check_kinds(config: Any) -> None:
    """Refuse settings of another kind than their defaults: a text for a truth value, a fraction for a count.

    Raises:
        ConfigError: Naming the setting, its value and what is wanted.
    """
    rllibs = vars(AlgorithmConfig()).keys() - {"lr"}
    for name, default in vars(type(config)()).items():
        if name not in rllibs:
            like_default(name, getattr(config, name), default)
    require("betas", config.betas, _are_moments(config.betas), "two numbers in [0, 1)")
    check_fields(config.steps, "steps.")
    check_fields(config.policy, "policy.")


def _are_moments(betas: Any) -> bool:
    """Whether these are the two moments of AdamW."""
    listed = isinstance(betas, list | tuple) and len(betas) == 2
    return listed and all(is_number(beta) and 0 <= beta < 1 for beta in betas)


def _check_advantage_parts(config: Any) -> None:
    weights = config.advantage_parts
    if not weights:
        return
    for name, weight in weights.items():
        if not is_number(weight) or weight == 0:
            raise ConfigError(
                f"`advantage_parts` must be finite weights other than 0, got {weight!r} for {name!r}."
            )
    if config.advantage_scale != "group":
        raise ConfigError(
            "`advantage_scale` must stay 'group' with `advantage_parts`, which normalises each part within "
            f"its group, got {config.advantage_scale!r}."
        )


def check_latents(config: Any) -> None:
    """Refuse settings that cannot work where latents are denoised.

    Raises:
        ConfigError: Naming the setting, its value and the remedy.
    """
    if config.engine != "local":
        raise ConfigError(
            f"`engine` must be 'local' where latents are denoised, got {config.engine!r}: vLLM and SGLang "
            "generate tokens."
        )
    # Choosing steps now finds settings that leave none.
    config.trained_steps(0)


def check_tokens(config: Any) -> None:
    """Refuse settings that cannot work where tokens are generated.

    Raises:
        ConfigError: Naming the setting, its value and the remedy.
    """
    policy = config.policy
    check_sampling(policy.temperature, policy.top_p, policy.top_k)
    if policy.eval_temperature is not None and policy.eval_temperature < 0:
        raise ConfigError(
            f"`policy.eval_temperature` must be at least 0 or None, got {policy.eval_temperature}."
        )
    if config.engine not in ENGINES:
        ENGINES.get(config.engine)  # a dotted path of the user's own, or an error that says so
    _one_of(config, "aggregate", ("token_mean", "sequence_mean", "horizon"))
    if config.aggregate == "horizon":
        _at_least(config, "horizon", 1)
    elif config.horizon is not None:
        raise ConfigError(
            f"`horizon` must be None unless `aggregate` is 'horizon', got {config.horizon} with "
            f"{config.aggregate!r}."
        )


def warn_of_settings(config: Any) -> None:
    """Say what is allowed and hardly meant."""
    warn_of_idle_clip(config)


def warn_of_idle_clip(config: Any) -> None:
    """Say so if no advantage can be as large as `advantage_clip`: it would seem to bound something."""
    largest = math.sqrt(max(0, config.group_size - 1))
    parts = config.advantage_parts and set(config.trained) - set(config.phase_rewards)
    if config.advantage_clip is None or config.advantage_scale != "group" or parts:
        return
    if config.advantage_clip >= largest:
        logger.warning(
            "`advantage_clip` is %g, and no advantage of a group of %d can exceed sqrt(%d) = %.3g under "
            "`advantage_scale` 'group': it does nothing. Try a smaller one, or None.",
            *(config.advantage_clip, config.group_size, config.group_size - 1, largest),
        )


def _check_shares(config: Any) -> None:
    runners = config.num_env_runners
    if runners and config.num_prompts % runners:
        raise ConfigError(
            f"`num_prompts` must be divisible by `num_env_runners` ({runners}), got {config.num_prompts}: "
            f"each runner takes whole groups; try num_prompts={_multiple(config.num_prompts, runners)}."
        )
    check_epochs(
        config.num_prompts,
        config.group_size,
        config.num_learners,
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
        minibatch_size=config.minibatch_size,
        shuffle=config.shuffle_batch_per_epoch,
    )


def _check_phases(config: Any) -> None:
    phases = config.mode.phases(config)
    named = {
        "train_phases": phases if config.train_phases is None else config.train_phases,
        "phase_rewards": config.phase_rewards,
        "phase_weights": config.phase_weights,
    }
    for name, chosen in named.items():
        unknown = [phase for phase in chosen if phase not in phases]
        if unknown or (name == "train_phases" and not chosen):
            raise ConfigError(
                f"`{name}` must name phases of {config.env}, which has {', '.join(phases)}, got "
                f"{list(chosen)}."
            )
    for kind in dict.fromkeys(phases[phase] for phase in config.trained):
        if kind not in config.losses:
            about = f" ({KINDS[kind].about})" if KINDS[kind].about else ""
            raise ConfigError(
                f"The agent must have a loss on {kind}{about}, which {config.env} trains, got losses on "
                f"{sorted(config.losses)}; try another agent."
            )
    for phase, weight in config.phase_weights.items():
        if not is_number(weight) or not weight > 0:
            raise ConfigError(
                f"`phase_weights` must be positive, got {weight} for {phase!r}; try `train_phases` to leave "
                "a phase out."
            )


def _at_least(config: Any, name: str, bound: float) -> None:
    value = getattr(config, name)
    if not _is_real(value) or not value >= bound:
        raise ConfigError(f"`{name}` must be a number of at least {bound}, got {value!r}.")


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _one_of(config: Any, name: str, allowed: tuple[str | None, ...]) -> None:
    if getattr(config, name) not in allowed:
        raise ConfigError(
            f"`{name}` must be one of {', '.join(map(str, allowed))}, got {getattr(config, name)!r}."
        )


def _multiple(value: int, divisor: int) -> int:
    return -(-value // divisor) * divisor
