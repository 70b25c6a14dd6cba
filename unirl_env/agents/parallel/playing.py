"""A learner that plays, too: the policy that learners hold in parts generates first, then trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch.distributed as dist

from unirl_env.agents.learner_state import StatefulLearner
from unirl_env.agents.parallel.bell import Bell
from unirl_env.episode import EpisodeBatch
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.kept import put_away
from unirl_env.rollouts.runner import GenerativeEnvRunner


class PlayingLearner(StatefulLearner):
    """Learners that hold parts of the policy play together, each its own episodes.

    Every forward pass gathers weights from all of them, so all play alike: as many groups each, and whoever
    has written its texts passes through the network with the others until theirs are at their ends, too.
    """

    config: Any
    _bell: Bell | None = None
    _runner: GenerativeEnvRunner | None = None

    def take_bell(self, bell: Bell) -> None:
        """Where to leave the cause if this learner fails while others wait for it in a forward pass."""
        self._bell = bell

    @property
    def player(self) -> GenerativeEnvRunner:
        """What plays with this learner's own module, in an environment of its own."""
        if self._runner is None:
            self._runner = GenerativeEnvRunner(config=self.config, worker_index=dist.get_rank() + 1)
            self._runner.adopt(self.policy)
        return self._runner

    def play(self, shares: Sequence[RolloutRequest]) -> tuple[int, EpisodeBatch | None]:
        """The number of this learner's share, and its episodes; None where another learner reports them.

        Args:
            shares: Of equally many groups.
        """
        rank, share = dist.get_rank(), self.parallel.share
        try:
            asked = shares[share]
            batch = self.player.collect(replace(asked, put_away=False))
            self.parallel.require_same({name: p.action for name, p in batch.phases.items()}, "episodes")
            if not self.parallel.reports:
                return share, None
            return share, put_away(batch) if asked.put_away else batch
        except Exception as error:
            if self._bell is not None:
                self._bell.leave(rank, error)
            raise
