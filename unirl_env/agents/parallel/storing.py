"""States that learners write themselves, as the driver sees it: begin, end, and a disk that all share."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from unirl_env.errors import ConfigError

LARGE = 250_000_000
"""Trained weights from which on learners that divide them write them themselves: 1 GB in float32, and 3 GB
with the moments of AdamW, which would all pass through the first learner and the driver."""


class Storing:
    """Lets learners write their parts of a state into a folder that all processes see.

    Args:
        on_learners: Calls a function on all learners, and returns what they answer.
    """

    def __init__(self, on_learners: Callable[[Any], list[Any]]):
        self._on_learners = on_learners

    def require_shared(self, folder: Path) -> None:
        """Refuse a folder in which the driver does not see what learners write.

        Raises:
            ConfigError: Naming it.
        """
        token, where = secrets.token_hex(8), folder.resolve()
        told = self._on_learners(lambda learner: _probe(where, token))
        for rank, fault in told:
            probe = _probe_of(where, rank)
            found = probe.read_text() if probe.is_file() else None
            probe.unlink(missing_ok=True)
            if found != token:
                cause = "" if fault is None else f" ({fault})"
                raise ConfigError(
                    "`logging.folder` must be on a disk that all machines share where learners write their "
                    f"parts of checkpoints, got {folder}, in which the driver does not see what learner "
                    f"{rank} writes{cause}; try a shared folder, or learner.checkpoint=whole, which passes "
                    "all of it through the driver."
                )

    def begin(self, folder: Path, facts: Callable[[Path], Any]) -> None:
        """Let learners copy their state, and begin to write the copy.

        Args:
            folder: Empty.
            facts: What is to be told of each file; learners call it, so it must be importable.
        """
        where = folder.resolve()
        self._on_learners(lambda learner: learner.begin_storing(where, facts))

    def end(self) -> dict[str, Any]:
        """Wait until all have written; the facts of all files, by their names.

        Raises:
            OSError: If a file could not be written.
            LearnerLost: If a learner has died.
        """
        written = self._on_learners(lambda learner: learner.end_storing())
        return {name: facts for each in written for name, facts in each.items()}


def stores_parts(config: Any, trained: int) -> bool:
    """Whether learners write their state themselves, by the rule of `learner.checkpoint`.

    Args:
        config: An `AgentConfig`.
        trained: How many weights are trained.
    """
    how = config.learner.checkpoint
    return how == "divided" or (how == "auto" and config.divides and trained > LARGE)


def _probe(folder: Path, token: str) -> tuple[int, str | None]:
    rank = dist.get_rank() if dist.is_initialized() else 0
    try:
        _probe_of(folder, rank).write_text(token)
    except OSError as error:
        return rank, error.strerror
    return rank, None


def _probe_of(folder: Path, rank: int) -> Path:
    return folder / f".probe-{rank}"
