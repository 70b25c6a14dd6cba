"""What an agent's settings must satisfy before anything is built."""

from __future__ import annotations

from typing import Any

from unirl_env.errors import ConfigError

__all__ = ["check_settings"]


def check_settings(config: Any) -> None:
    """Refuse settings that cannot work, alone or together.

    Args:
        config: An `AgentConfig`.

    Raises:
        ConfigError: Naming the setting, its value and the remedy.
    """
    for name in ("num_prompts", "group_size", "num_minibatches"):
        _at_least(config, name, 1)
    for name in ("rollout_batch_size", "micro_batch_size"):
        if getattr(config, name) is not None:
            _at_least(config, name, 1)
    for name in ("lr", "warmup_iterations", "weight_decay", "reference_kl"):
        _at_least(config, name, 0)
    for name in ("max_grad_norm", "advantage_clip", "self_check_tolerance"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ConfigError(f"`{name}` must be positive or None, got {value}.")
    _one_of(config, "anchor", ("rollout", "replay"))
    _one_of(config, "advantage_scale", ("group", "batch", "none"))
    _check_shares(config)
    # Choosing steps now finds settings that leave none.
    config.trained_steps(0)
    if config.evaluation_interval:
        raise ConfigError(
            f"`evaluation_interval` must stay unset, got {config.evaluation_interval}; try "
            "`agent.rollout_eval(prompts, seed=...)`, which compares the same samples every time."
        )


def _check_shares(config: Any) -> None:
    runners = config.num_env_runners
    if runners and config.num_prompts % runners:
        raise ConfigError(
            f"`num_prompts` must be divisible by `num_env_runners` ({runners}), got {config.num_prompts}: "
            f"each runner takes whole groups; try num_prompts={_multiple(config.num_prompts, runners)}."
        )
    shares = config.num_minibatches * max(1, config.num_learners)
    if config.episodes % shares:
        raise ConfigError(
            f"`num_prompts` x `group_size` must be divisible by `num_minibatches` x `num_learners`, got "
            f"{config.num_prompts} x {config.group_size} = {config.episodes} and {shares}; try "
            f"group_size={_multiple(config.group_size, shares)}."
        )


def _at_least(config: Any, name: str, bound: float) -> None:
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < bound:
        raise ConfigError(f"`{name}` must be a number of at least {bound}, got {value!r}.")


def _one_of(config: Any, name: str, allowed: tuple[str, ...]) -> None:
    if getattr(config, name) not in allowed:
        raise ConfigError(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(config, name)!r}.")


def _multiple(value: int, divisor: int) -> int:
    return -(-value // divisor) * divisor
