"""One exception class per cause, so that callers can catch what they can mend.

Every message follows one form: "`X` must be ..., got ...; try ...".
"""

from __future__ import annotations

import sys
from typing import Any

from unirl_env.errors.masks import hide, remember

__all__ = [
    "CheckpointError",
    "ClusterError",
    "ConfigError",
    "ContractError",
    "DiskError",
    "Diverged",
    "EngineError",
    "EngineLost",
    "EpisodesLost",
    "LearnerLost",
    "MissingExtra",
    "ModelNotFound",
    "NoAnswer",
    "NoWeights",
    "OutOfMemory",
    "PromptError",
    "RunnerLost",
    "ScorerError",
    "SelfCheckError",
    "ServiceLost",
    "ShapeError",
    "StaleWeights",
    "UnirlError",
    "UnknownArgument",
    "WireError",
]


class UnirlError(Exception):
    """The base of every error that this library raises on purpose; its message repeats no secret we know."""

    def __init__(self, *arguments: object):
        super().__init__(*(hide(part) if isinstance(part, str) else part for part in arguments))


class ShapeError(UnirlError, ValueError):
    """A tensor has the wrong rank, shape or dtype."""


class ConfigError(UnirlError, ValueError):
    """A setting is unknown, out of range, or impossible together with another one."""


class UnknownArgument(ConfigError, TypeError):
    """An argument that is not known, told as Python tells it: other libraries wait for just these words."""


class ClusterError(UnirlError, RuntimeError):
    """Ray does not start, or has no room for the processes that are asked for."""


class ContractError(UnirlError, RuntimeError):
    """An environment, scorer or policy broke the contract that others rely on."""


class Diverged(ContractError):
    """Training has left what can be computed: its gradients are no numbers any more."""


class EngineError(UnirlError, RuntimeError):
    """An engine cannot start, or refused what it was asked for; asking again would not help."""


class EngineLost(UnirlError, RuntimeError):
    """An engine died, and what it was generating with it; it can be restarted."""


class PromptError(UnirlError, ValueError):
    """A prompt source cannot be read, or holds nothing that can be used."""


class ModelNotFound(UnirlError, OSError):
    """A pretrained model cannot be loaded; never replaced silently by another one."""

    def __init__(self, *arguments: object):
        if "huggingface_hub" in sys.modules:
            # A mirror of the hub may repeat the token that it refuses.
            remember(sys.modules["huggingface_hub"].get_token())
        super().__init__(*arguments)


class DiskError(UnirlError, OSError):
    """A file of a run cannot be written: the disk is full, gone or read-only."""


class OutOfMemory(UnirlError, MemoryError):
    """The machine or its accelerator has not enough memory for what was asked."""


class NoAnswer(UnirlError, TimeoutError):
    """A part of a run, in this process or another one, did not come back in time: it hangs or was stopped."""


class LearnerLost(UnirlError, RuntimeError):
    """A learner process died in the middle of an update, and the weights of this iteration with it."""


class EpisodesLost(UnirlError, RuntimeError):
    """Episodes died with the process that had played them, before anybody learned from them."""


class RunnerLost(UnirlError, RuntimeError):
    """A rollout process died, and its share of the episodes with it."""


class ScorerError(UnirlError, RuntimeError):
    """A scorer failed as a whole; carries the scorer's name."""


class ServiceLost(ScorerError):
    """No service answered for any sample; asking again, sample by sample, would not help."""


class SelfCheckError(UnirlError, RuntimeError):
    """The first update did not find ratio one and KL zero: the run would train on wrong numbers."""


class StaleWeights(UnirlError, RuntimeError):
    """A rollout was produced by weights of another version than the learner expects."""


class NoWeights(StaleWeights):
    """A rollout process has started again with untrained weights: it must be given the present ones."""


class WireError(UnirlError, ValueError):
    """What came over the wire is malformed, too large, or does not answer what was asked."""


class CheckpointError(UnirlError, RuntimeError):
    """A checkpoint is missing, incomplete or does not fit this run."""


class MissingExtra(UnirlError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str):
        self.package, self.extra = package, extra
        super().__init__(
            f"`{package}` must be installed for this feature; try `pip install 'unirl-env[{extra}]'`."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.package, self.extra)
