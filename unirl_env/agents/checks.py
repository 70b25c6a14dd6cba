"""What an agent's settings must satisfy before anything is built."""

from __future__ import annotations

import logging
import math
from typing import Any

from unirl_env.agents.evaluation import check_evaluation
from unirl_env.agents.loss import check_loss
from unirl_env.agents.phases import KINDS
from unirl_env.agents.settings import check_groups, rebuilt
from unirl_env.arguments.values import whole
from unirl_env.errors import ConfigError
from unirl_env.rollouts.callbacks import check_callbacks
from unirl_env.rollouts.engines.options import check_engine_options
from unirl_env.settings import AgentSettings, RolloutSettings
from unirl_env.settings.together import check_shares

__all__ = ["check_settings", "warn_of_idle_clip", "warn_of_settings"]

logger = logging.getLogger(__name__)


def check_settings(config: Any) -> None:
    """Refuse settings that cannot work, alone or together.

    Args:
        config: An `AgentConfig`.

    Raises:
        ConfigError: Naming the setting, its value and the remedy.
    """
    whole("seed", config.run_seed, 0)
    check_groups(config)
    config.solve_batch_size()
    if config.grad_clip_by != "global_norm":
        raise ConfigError(
            f"`grad_clip_by` must be 'global_norm', got {config.grad_clip_by!r}: clipping each weight or "
            "value by itself turns the gradient; try 'global_norm' and `grad_clip`, which keep its direction."
        )
    check_shares(rebuilt(AgentSettings, config), rebuilt(RolloutSettings, config))
    config.mode.check(config)
    check_engine_options(config.engine, config.engine_options)
    _check_phases(config)
    check_evaluation(config)
    check_callbacks(config)


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


def _check_phases(config: Any) -> None:
    phases = config.mode.phases(config)
    named = {
        "train_phases": phases if config.train_phases is None else config.train_phases,
        "phase_rewards": config.phase_rewards,
        "phase_weights": config.phase_weights,
    }
    for name, chosen in named.items():
        unknown = [phase for phase in chosen if phase not in phases]
        if unknown:
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
        check_loss(config, kind)
