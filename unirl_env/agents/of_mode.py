"""What an agent's settings take from their environment's mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from unirl_env.agents.phases import Losses
from unirl_env.modes import Mode, mode_of

__all__ = ["OfMode"]


class OfMode:
    """The mode of an `AgentConfig`, resolved once for an environment; and its losses, by kinds of phases."""

    losses: ClassVar[Mapping[str, Any]] = {}
    """The loss of each kind of phase: of `latents`, of `tokens`. A kind without one takes that of the kind
    which it is `like`."""

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        cls.losses = Losses(cls.losses)

    @property
    def mode(self) -> Mode:
        """What kind of environment this is."""
        # What it follows from: another id, or anything else in the arguments, may mean another mode.
        asked = (self.env, *self.env_config.keys(), *self.env_config.values())
        held = vars(self).get("_mode")
        if held is None or len(held[0]) != len(asked) or any(map(_differ, held[0], asked)):
            # Past RLlib's own `__setattr__`, which refuses to change settings once they are frozen.
            held = vars(self)["_mode"] = (asked, mode_of(self.env_options()))
        return held[1]


def _differ(one: Any, other: Any) -> bool:
    return one is not other
