"""How new weights reach the runners: published once, with a version, the trainable ones only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.rllib.core import DEFAULT_MODULE_ID
from torch import Tensor

from unirl_env.errors import StaleWeights
from unirl_env.rollouts.calls import call_runners, learner_results

__all__ = ["SyncReport", "WeightSync", "require_version"]


@dataclass(frozen=True)
class SyncReport:
    """What a publication cost.

    Attributes:
        version: The version that every runner has now.
        size: Bytes of the published weights; 0 where runner and learner share one module.
        seconds: From asking the learner to the last runner's confirmation.
    """

    version: int
    size: int
    seconds: float


class WeightSync:
    """Publishes a learner group's weights to the runners of an env runner group.

    A version is one object in Ray's object store, put there by the learner itself, so that weights do not
    pass through the driver; every runner reads that object.

    Args:
        learner_group: Where weights come from.
        env_runner_group: Where they go.
    """

    def __init__(self, learner_group: Any, env_runner_group: Any):
        self.learner_group = learner_group
        self.env_runner_group = env_runner_group

    def publish(self, version: int, runners: Sequence[int] | None = None) -> SyncReport:
        """Give every runner the learner's present weights under the name `version`.

        Args:
            version: At least the runners' own version.
            runners: Only these remote runners; None for all healthy ones and the local one.
        """
        begin = time.perf_counter()
        local = self.env_runner_group.local_env_runner
        remote = self.env_runner_group.num_remote_env_runners() > 0
        size = 0
        if remote:
            published = self._first_learner(_put_weights)
            size = published["size"]
            numbers = self.env_runner_group.healthy_env_runner_ids() if runners is None else runners
            arguments = {"version": version, "weights": published["weights"]}
            # The reference lies inside a dict: on its own, Ray would replace it by the weights.
            call_runners(self.env_runner_group, "load_weights", dict.fromkeys(numbers, arguments))
        elif local.shares_module:
            local.take_version(version)
        else:
            weights = self._first_learner(_weights)
            size = _size(weights)
            local.load_weights(version, weights)
        return SyncReport(version, size, time.perf_counter() - begin)

    def _first_learner(self, function: Any) -> Any:
        ids = [0] if self.learner_group.is_remote else None
        return learner_results(self.learner_group.foreach_learner(function, remote_actor_ids=ids))[0]


def require_version(have: int, wanted: int, who: str) -> None:
    """Refuse to roll out under other weights than the learner's.

    Raises:
        StaleWeights: Naming both versions.
    """
    if have != wanted:
        raise StaleWeights(
            f"{who} must act with weights of version {wanted}, got version {have}; publish the weights "
            "before collecting."
        )


def _weights(learner: Any) -> dict[str, Tensor]:
    return learner.module[DEFAULT_MODULE_ID].get_state()


def _put_weights(learner: Any) -> dict[str, Any]:
    weights = _weights(learner)
    return {"weights": ray.put(weights), "size": _size(weights)}


def _size(weights: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
