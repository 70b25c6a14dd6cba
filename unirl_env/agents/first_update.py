"""Which phases of a run the self-check has still to look at, and what it found."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from unirl_env.agents import selfcheck
from unirl_env.agents.reports import phase_metrics
from unirl_env.agents.update import Update
from unirl_env.episode import EpisodeBatch

__all__ = ["FirstUpdate"]

logger = logging.getLogger(__name__)


class FirstUpdate:
    """Every process checks each phase in the first update that has rows of it to train.

    A run that is continued is checked anew, because its machine or its engine may be another. Its log must be
    that of a run which was never interrupted, so what is found goes there once only.

    Args:
        config: An `AgentConfig`.

    Attributes:
        pending: The phases that are still to be checked.
        reported: Those whose findings the log has.
        found: What this process found, by the names of the log.
    """

    def __init__(self, config: Any):
        self.config = config
        self.found: dict[str, float] = {}
        self.begin(())

    def begin(self, reported: Sequence[str]) -> None:
        """Check all phases anew; the log has what was found of `reported` before."""
        self.pending = set(self.config.trained) if self.config.self_check else set()
        self.reported = set(reported)

    def note(self, batch: EpisodeBatch, updates: Sequence[Update]) -> None:
        """Take over what learners found, and leave in their reports what the log has not seen."""
        for name in sorted(self.pending):
            if name in batch.phases and not batch.phases[name].drawn:
                logger.warning("The self-check of `%s` does not apply: none of its steps was drawn.", name)
                self.pending.discard(name)
                continue
            parts = [update.phases[name] for update in updates if name in update.phases]
            if not any(part.check for part in parts):
                continue  # Nothing to compare yet.
            metrics = phase_metrics(parts)
            selfcheck.warn_of_noise(metrics, self.config.thresholds(batch.phases[name]))
            prefix = f"{name}/" if len(updates[0].phases) > 1 else ""
            self.found |= {prefix + key: metrics[key] for part in parts for key in part.check}
            self.pending.discard(name)
            if name in self.reported:
                for part in parts:
                    part.check = {}
            self.reported.add(name)
