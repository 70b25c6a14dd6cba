"""The settings of what a run leaves behind and of when it warns; see `unirl_env.config` for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["AlarmSettings", "LoggingSettings"]


@dataclass
class LoggingSettings:
    """What a run leaves behind."""

    folder: str = "runs"
    """Runs are written to <folder>/<name>."""
    eval_every: int = 0
    """Iterations between evaluations; 0 evaluates at the start and the end only."""
    eval_prompts: int = 16
    """Prompts of each evaluation set."""
    eval_samples: int = 4
    """Samples per evaluation prompt."""
    checkpoint_every: int = 10
    """Iterations between checkpoints; 0 writes one at the end only."""
    keep_last: int = 2
    """Checkpoints to keep besides the best one."""
    tensorboard: bool = True
    """Write TensorBoard events."""
    wandb: str | None = None
    """A Weights & Biases project; null for none."""
    progress: bool = True
    """Show the progress bar."""


@dataclass
class AlarmSettings:
    """When a run warns that its reward says less and less; a bound of null is not watched."""

    heldout_every: int = 5
    """Iterations from one held-out score of the training samples to the next; 0 takes none."""
    smooth: int = 3
    """Observations whose mean is held against a bound."""
    patience: int = 3
    """Such means in a row that must be beyond it."""
    gap: float | None = 0.5
    """Rise of the training reward and fall of the held-out one, both in standard deviations of the start."""
    diversity: float | None = 0.25
    """How small a share of its first value the variety within groups may become."""
    saturation: float | None = 0.99
    """How large a share of the episodes may earn the highest reward of all."""
    zero_std_groups: float | None = 0.9
    """How large a share of the groups may teach nothing."""
    stop: Any = "none"
    """Which alarms end the run: `none`, `all`, or a list of the names of bounds above."""
