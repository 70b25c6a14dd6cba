"""Which processes an agent has besides its own."""

from __future__ import annotations

import os
import socket
from typing import Any

__all__ = ["processes"]


def processes(agent: Any) -> dict[str, int]:
    """The ids of the runners and learners that are processes of their own on this machine, by their names.

    Args:
        agent: An `Agent`; of anything else, none are known.
    """
    runners, learners = getattr(agent, "env_runner_group", None), getattr(agent, "learner_group", None)
    found: list[tuple[str, str, int]] = []
    if runners is not None and runners.num_remote_env_runners():
        found += runners.foreach_env_runner(
            lambda runner: (f"Runner {runner.worker_index}", *_here()), local_env_runner=False
        )
    if learners is not None and learners.is_remote:
        told = [result.get() for result in learners.foreach_learner(lambda learner: _here()) if result.ok]
        found += [(f"Learner {number}", *here) for number, here in enumerate(told)]
    return {name: pid for name, host, pid in found if host == socket.gethostname()}


def _here() -> tuple[str, int]:
    return socket.gethostname(), os.getpid()
