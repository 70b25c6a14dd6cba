"""What a run's settings must satisfy by themselves, before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from unirl_env.checks import check_fields
from unirl_env.errors import ConfigError

if TYPE_CHECKING:
    from unirl_env.config import AlarmSettings, RunConfig

__all__ = ["NUM_MINIBATCHES", "SIGNALS", "check_alarm", "check_epochs", "check_run"]

SIGNALS = ("gap", "diversity", "saturation", "zero_std_groups")
"""What an alarm watches; each has a bound of its name in `AlarmSettings`."""
NUM_MINIBATCHES = 2
"""The default, which gives way to `minibatch_size`."""


def check_run(cfg: RunConfig) -> None:
    """Refuse what cannot work.

    Raises:
        ConfigError: Naming the field, its value and the remedy.
    """
    check_fields(cfg)
    rollout, agent = cfg.rollout, cfg.agent
    _one_of("reward.on_error", cfg.reward.on_error, ("invalid", "raise"))
    _one_of("steps.kind", cfg.steps.kind, ("all", "fraction", "random", "window"))
    _one_of("policy.dynamics", cfg.policy.dynamics, ("flow", "dance", "cps"))
    _one_of("agent.advantage_scale", agent.advantage_scale, ("group", "batch", "none", "leave_one_out"))
    _one_of("agent.anchor", agent.anchor, (None, "rollout", "replay"))
    _one_of("agent.aggregate", agent.aggregate, (None, "token_mean", "sequence_mean", "horizon"))
    if agent.kl_estimator == "k1":
        raise ConfigError(
            "`agent.kl_estimator` must be k2 or k3, got 'k1': the mean of its gradient is 0, so that it "
            "would not pull at all; try k2."
        )
    _one_of("agent.kl_estimator", agent.kl_estimator, ("k2", "k3"))
    _one_of("agent.idle_episodes", agent.idle_episodes, ("count", "leave_out"))
    if not 0 < agent.max_log_ratio <= 40:
        raise ConfigError(f"`agent.max_log_ratio` must lie in (0, 40], got {agent.max_log_ratio}; try 20.")
    if agent.adam_epsilon <= 0:
        raise ConfigError(f"`agent.adam_epsilon` must be positive, got {agent.adam_epsilon}; try 1e-8.")
    _one_of("model.dtype", cfg.model.dtype, ("float32", "bfloat16", "float16"))
    _one_of("policy.storage_dtype", cfg.policy.storage_dtype, ("float32", "bfloat16", "float16"))
    for name, value in {
        "iterations": cfg.iterations,
        "rollout.num_prompts": rollout.num_prompts,
        "rollout.group_size": rollout.group_size,
    }.items():
        if value < 1:
            raise ConfigError(f"`{name}` must be at least 1, got {value}.")
    if rollout.timeout_s is not None and not rollout.timeout_s > 0:
        raise ConfigError(
            f"`rollout.timeout_s` must be positive, or null to wait for ever, got {rollout.timeout_s}; "
            f"try 3600."
        )
    if rollout.group_size == 1:
        raise ConfigError(
            "`rollout.group_size` must be at least 2, got 1: an episode alone in its group has "
            "advantage zero, so nothing would be learned; try 8."
        )
    if agent.lr <= 0:
        raise ConfigError(f"`agent.lr` must be positive, got {agent.lr}.")
    if cfg.policy.eta <= 0:
        raise ConfigError(
            f"`policy.eta` must be positive, got {cfg.policy.eta}: without noise no step has a "
            "log-probability to train on; try 0.7."
        )
    if (agent.aggregate == "horizon") != (agent.horizon is not None):
        raise ConfigError(
            f"`agent.horizon` must be given with `agent.aggregate=horizon` and no other, got {agent.horizon} "
            f"with {agent.aggregate}; try the limit of new tokens."
        )
    low, high = cfg.steps.fraction
    if not 0 <= low < high <= 1:
        raise ConfigError(f"`steps.fraction` must satisfy 0 <= low < high <= 1, got {low}, {high}.")
    check_alarm(cfg.alarm, heldout=cfg.reward.heldout is not None)
    _check_divisibility(cfg)
    _check_overlap(cfg)


def _check_overlap(cfg: RunConfig) -> None:
    rollout = cfg.rollout
    share = rollout.num_prompts * rollout.group_size // max(1, rollout.num_env_runners)
    if cfg.reward.overlap and (rollout.batch_size is None or rollout.batch_size >= share):
        raise ConfigError(
            f"`rollout.batch_size` must be less than the {share} episodes of a runner's share with "
            f"`reward.overlap`, got {rollout.batch_size}: a single lot has no next one to be played while it "
            f"is judged; try rollout.batch_size={max(1, share // 8)}."
        )


def check_alarm(alarm: AlarmSettings, heldout: bool = True) -> None:
    """Refuse an alarm that could never ring as it is meant to.

    Args:
        alarm: The settings.
        heldout: Whether there is a held-out reward.

    Raises:
        ConfigError: Naming the field, its value and the remedy.
    """
    for name, least in (("heldout_every", 0), ("smooth", 1), ("patience", 1)):
        if getattr(alarm, name) < least:
            raise ConfigError(f"`alarm.{name}` must be at least {least}, got {getattr(alarm, name)}.")
    for name in SIGNALS:
        bound, most = getattr(alarm, name), math.inf if name == "gap" else 1.0
        if bound is not None and not 0 < bound <= most:
            raise ConfigError(f"`alarm.{name}` must be above 0 and at most {most}, or null, got {bound}.")
    named = [alarm.stop] if isinstance(alarm.stop, str) else alarm.stop
    if named in (["all"], ["none"]):
        return
    for name in named if isinstance(named, Sequence) else [named]:
        if name not in SIGNALS:
            raise ConfigError(
                f"`alarm.stop` must be none, all or a list of {', '.join(SIGNALS)}, got {alarm.stop!r}."
            )
        if getattr(alarm, name) is None:
            raise ConfigError(f"`alarm.{name}` must be a bound where `alarm.stop` names it, got null.")
        if name == "gap" and not (heldout and alarm.heldout_every):
            raise ConfigError(
                "`alarm.stop` must name what is watched, got `gap` without held-out scores; try a scorer for "
                "`reward.heldout`, and `alarm.heldout_every=5`."
            )


def check_epochs(
    num_prompts: int,
    group_size: int,
    num_learners: int,
    *,
    num_epochs: int,
    num_minibatches: int,
    minibatch_size: int | None,
    shuffle: bool | str,
    agent: str = "",
    rollout: str = "",
) -> None:
    """Refuse epochs and minibatches that do not divide an iteration's episodes as they are meant to.

    Args:
        num_prompts: P, and with the next one the episodes of an iteration.
        group_size: G.
        num_learners: L; 0 counts as 1.
        num_epochs: Passes over the episodes.
        num_minibatches: Optimizer steps of a pass.
        minibatch_size: Episodes that each learner takes in one, or None.
        shuffle: False, True, `"group"` or `"episode"`.
        agent: What the names of an agent's settings begin with in the message.
        rollout: What those of the rollout's begin with.

    Raises:
        ConfigError: Naming the setting, its value and the remedy.
    """
    counts = {"num_epochs": num_epochs, "num_minibatches": num_minibatches}
    counts |= {} if minibatch_size is None else {"minibatch_size": minibatch_size}
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"`{agent}{name}` must be a whole number of at least 1, got {value!r}.")
    if not isinstance(shuffle, bool) and shuffle not in ("group", "episode"):
        raise ConfigError(
            f"`{agent}shuffle_batch_per_epoch` must be False, True, 'group' or 'episode', got {shuffle!r}."
        )
    episodes, learners = num_prompts * group_size, max(1, num_learners)
    name, shares = "num_minibatches", num_minibatches * learners
    if minibatch_size is not None:
        name, shares = "minibatch_size", minibatch_size * learners
    if episodes % shares:
        raise ConfigError(
            f"`{rollout}num_prompts` x `{rollout}group_size` must be divisible by `{agent}{name}` x "
            f"`{rollout}num_learners`, got {num_prompts} x {group_size} = {episodes} and {shares}; "
            f"try {rollout}group_size={_next_multiple(group_size, shares)}."
        )
    if minibatch_size is not None and num_minibatches not in (NUM_MINIBATCHES, episodes // shares):
        raise ConfigError(
            f"`{agent}num_minibatches` must be {episodes // shares} or stay unset with "
            f"`{agent}minibatch_size` = {minibatch_size}, got {num_minibatches}; try one of the two."
        )
    size = shares if minibatch_size is not None else episodes // num_minibatches
    if shuffle == "group" and size % group_size:
        whole = max(n for n in range(1, num_prompts + 1) if n * size <= episodes and num_prompts % n == 0)
        raise ConfigError(
            f"`{agent}shuffle_batch_per_epoch` must be 'episode' or False where minibatches cut a group, got "
            f"'group' with minibatches of {size} episodes and groups of {group_size}; try "
            f"{agent}num_minibatches={whole}, of whole groups."
        )


def _check_divisibility(cfg: RunConfig) -> None:
    rollout, agent = cfg.rollout, cfg.agent
    if rollout.num_env_runners and rollout.num_prompts % rollout.num_env_runners:
        raise ConfigError(
            f"`rollout.num_prompts` must be divisible by `rollout.num_env_runners` "
            f"({rollout.num_env_runners}), got {rollout.num_prompts}; each runner takes whole groups."
        )
    check_epochs(
        rollout.num_prompts,
        rollout.group_size,
        rollout.num_learners,
        num_epochs=agent.num_epochs,
        num_minibatches=agent.num_minibatches,
        minibatch_size=agent.minibatch_size,
        shuffle=agent.shuffle_batch_per_epoch,
        agent="agent.",
        rollout="rollout.",
    )


def _one_of(name: str, value: object, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"`{name}` must be one of {', '.join(map(str, allowed))}, got {value!r}.")


def _next_multiple(value: int, divisor: int) -> int:
    return -(-value // divisor) * divisor
