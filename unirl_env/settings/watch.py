"""The settings of what a run leaves behind and of when it warns; see `unirl_env.settings` for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unirl_env.errors import ConfigError
from unirl_env.settings.fields import Settings, setting

SIGNALS = ("gap", "diversity", "saturation", "zero_std_groups")
"""What an alarm watches; each has a bound of its name in `AlarmSettings`."""


@dataclass
class LoggingSettings(Settings):
    """What a run leaves behind."""

    folder: str = setting("runs", may_change=True)
    """Runs are written to <folder>/<name>."""
    eval_every: int = setting(0, least=0, may_change=True)
    """Iterations between evaluations; 0 evaluates at the start and the end only."""
    eval_prompts: int = setting(16, least=1)
    """Prompts of each evaluation set."""
    eval_samples: int = setting(4, least=1)
    """Samples per evaluation prompt."""
    eval_drift: bool = setting(False)
    """Measure at each evaluation how far the policy is from the untrained model, too: the KL in nats of whole
    episodes, and of latents the size of velocities, as `evaluation/drift/...`. It plays the last evaluation
    set once more, as training explores, scores it, and takes a forward pass of the untrained model at every
    step (a second of the policy's where nothing was recorded)."""
    checkpoint_every: int = setting(10, least=0, may_change=True)
    """Iterations between checkpoints; 0 writes one at the end only."""
    keep_last: int = setting(2, least=1, may_change=True)
    """Checkpoints to keep besides the best one."""
    tensorboard: bool = setting(True, may_change=True)
    """Write TensorBoard events."""
    wandb: str | None = setting(None, may_change=True)
    """A Weights & Biases project; null for none."""
    progress: bool = setting(True, may_change=True)
    """Show the progress bar."""


@dataclass
class AlarmSettings(Settings):
    """When a run warns that its reward says less and less; a bound of null is not watched.

    An alarm changes nothing in a run: who was stopped by one may go on with other bounds.
    """

    heldout_every: int = setting(5, least=0, may_change=True)
    """Iterations from one held-out score of the training samples to the next; 0 takes none."""
    smooth: int = setting(3, least=1, may_change=True)
    """Observations whose mean is held against a bound."""
    patience: int = setting(3, least=1, may_change=True)
    """Such means in a row that must be beyond it."""
    gap: float | None = setting(0.5, above=0, may_change=True)
    """Rise of the training reward and fall of the held-out one, both in standard deviations of the start."""
    diversity: float | None = setting(0.25, above=0, most=1, may_change=True)
    """How small a share of its first value the variety within groups may become."""
    saturation: float | None = setting(0.99, above=0, most=1, may_change=True)
    """How large a share of the episodes may earn the highest reward of all."""
    zero_std_groups: float | None = setting(0.9, above=0, most=1, may_change=True)
    """How large a share of the groups may teach nothing."""
    stop: Any = setting("none", may_change=True)
    """Which alarms end the run: `none`, `all`, or a list of the names of bounds above."""

    @property
    def stops(self) -> tuple[str, ...]:
        """The bounds that end the run."""
        if self.stop in ("all", ["all"]):
            return SIGNALS
        if self.stop in ("none", ["none"]):
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def check(self, prefix: str = "") -> None:
        """Refuse an alarm that could never ring as it is meant to, too."""
        super().check(prefix)
        listed = isinstance(self.stop, Sequence)
        if not listed or any(name not in SIGNALS for name in self.stops):
            raise ConfigError(
                f"`{prefix}stop` must be none, all or a list of {', '.join(SIGNALS)}, got {self.stop!r}."
            )
        named = () if self.stop in ("all", ["all"]) else self.stops
        for name in named:
            if getattr(self, name) is None:
                raise ConfigError(
                    f"`{prefix}{name}` must be a bound where `{prefix}stop` names it, got null; try "
                    f"{getattr(AlarmSettings, name)}."
                )
        if "gap" in named and not self.heldout_every:
            raise ConfigError(
                f"`{prefix}stop` must name what is watched, got `gap` without held-out scores; try "
                f"`{prefix}heldout_every=5`."
            )
