"""A checkpoint that learners write themselves, part by part, while training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unirl_env.run.failure import disk_error
from unirl_env.run.record import checkpoint as checkpoints


@dataclass(frozen=True)
class Writing:
    """What has begun, and is no checkpoint before it is finished: a draft, which whoever comes later drops.

    Attributes:
        storing: The agent's, which learners write for.
        draft: Where they write.
        iteration: How many iterations were finished.
        meta: The agent's.
        score: What `best` compares.
    """

    storing: Any
    draft: Path
    iteration: int
    meta: Mapping[str, Any]
    score: float | None

    @classmethod
    def begin(
        cls, storing: Any, folder: Path, iteration: int, meta: Mapping[str, Any], score: float | None
    ) -> Writing | None:
        """Let learners copy their parts, and begin to write; None if a sound checkpoint is there already.

        Raises:
            DiskError: If there is no place to write to.
        """
        draft = checkpoints.begin(folder, iteration)
        if draft is None:
            return None
        try:
            storing.begin(draft, checkpoints.facts)
        except BaseException:
            checkpoints.abandon(draft)
            raise
        return cls(storing, draft, iteration, meta, score)

    def finish(self) -> checkpoints.Checkpoint:
        """Wait until all parts are on the disk, and make a checkpoint of them in one step.

        Raises:
            DiskError: If something could not be written; nothing is left of it.
            LearnerLost: If a learner has died.
        """
        try:
            parts = self.storing.end()
        except OSError as error:
            checkpoints.abandon(self.draft)
            raise disk_error(error, self.draft.parent) from error
        except BaseException:
            checkpoints.abandon(self.draft)
            raise
        return checkpoints.finish(self.draft, self.iteration, parts, self.meta, self.score)
