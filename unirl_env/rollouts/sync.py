"""How new weights reach the players: with a version, the trained ones only, one bucket after another."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from unirl_env.errors import NoWeights, StaleWeights
from unirl_env.policies.buckets import BUCKET_BYTES, filled, in_buckets
from unirl_env.rollouts.calls import call_runners, learner_results, of_first_learner


@dataclass(frozen=True)
class SyncReport:
    """What a publication cost.

    Attributes:
        version: The version that every runner has now.
        size: Bytes of the published weights; 0 where runner and learner share one module.
        seconds: From asking the learner to the last runner's confirmation.
        buckets: In how many objects they travelled.
    """

    version: int
    size: int
    seconds: float
    buckets: int = 0


class WeightSync:
    """Publishes a learner group's weights to the runners of an env runner group.

    Weights travel in buckets, each an object in Ray's object store, put there by the first learner itself, so
    that they do not pass through the driver. Every runner on a node reads the same one, and it is let go
    before the next one is filled: beside its own weights, nobody holds more than a bucket or two. Adapters
    are one bucket.

    Args:
        learner_group: Where weights come from.
        env_runner_group: Where they go.
        divided: Whether learners hold parts of the policy.
        learners_play: Whether it is they who play, and no weights have to go anywhere.

    Attributes:
        bucket_bytes: What the weights of a bucket take at most; a larger weight has one for itself.
    """

    def __init__(
        self,
        learner_group: Any,
        env_runner_group: Any,
        *,
        divided: bool = False,
        learners_play: bool = False,
    ):
        self.learner_group = learner_group
        self.env_runner_group = env_runner_group
        self.bucket_bytes = BUCKET_BYTES
        self._divided, self._learners_play = divided, learners_play

    def publish(self, version: int, runners: Sequence[int] | None = None) -> SyncReport:
        """Give every runner the learner's present weights under the name `version`.

        One that dies on the way is left out, and one that cannot go on has no weights until the next time.

        Args:
            version: At least the runners' own version.
            runners: Only these remote runners; None for all healthy ones and the local one.
        """
        begin = time.perf_counter()
        local = self.env_runner_group.local_env_runner
        sizes: list[int] = []
        if self._learners_play:
            learner_results(
                self.learner_group.foreach_learner(lambda learner: learner.player.take_version(version))
            )
        elif self.env_runner_group.num_remote_env_runners() > 0:
            living = self.env_runner_group.healthy_env_runner_ids() if runners is None else list(runners)
            for size, arguments in self._buckets(version):
                sizes.append(size)
                answers = call_runners(
                    self.env_runner_group, "load_weights", dict.fromkeys(living, arguments)
                )
                del arguments  # before the next bucket is filled
                living = [number for number, it in answers.items() if not isinstance(it, NoWeights)]
                if not living:
                    break
        elif local.shares_module:
            local.take_version(version)
        else:
            for size, arguments in self._buckets(version):
                sizes.append(size)
                local.load_weights(**arguments)
                del arguments
        return SyncReport(version, sum(sizes), time.perf_counter() - begin, len(sizes))

    def _buckets(self, version: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Bytes of one bucket after another, and what a runner's `load_weights` is given."""
        part, parts = 0, 1
        while part < parts:
            put = of_first_learner(
                self.learner_group, partial(_put_bucket, part, self.bucket_bytes), divided=self._divided
            )
            parts = put["parts"]
            # The reference lies inside a dict: on its own, Ray would replace it by the weights.
            yield (
                put["size"],
                {"version": version, "weights": put.pop("bucket"), "part": part, "parts": parts},
            )
            part += 1


def require_version(have: int | None, wanted: int, who: str, *, given: bool = True) -> None:
    """Refuse to roll out under other weights than the learner's.

    Args:
        have: The version at hand; None while only some of its weights are there.
        wanted: The version that is asked for.
        who: What holds it, for the error.
        given: Whether it was ever given any.

    Raises:
        StaleWeights: Naming both versions; `NoWeights` where none were given, or only some.
    """
    if have != wanted:
        raise (StaleWeights if given and have is not None else NoWeights)(
            f"{who} must act with weights of version {wanted}, got "
            f"{'a part of a version' if have is None else f'version {have}'}; publish the weights before "
            "collecting."
        )


def _put_bucket(part: int, limit: int, learner: Any) -> dict[str, Any]:
    """Put one bucket of the learner's weights into the store; where they are divided, rank 0 does."""
    state = learner.policy.actor.state()
    parts = in_buckets(state, limit)
    bucket = filled({name: state[name] for name in parts[part]})
    if bucket is None:
        return {}
    return {"bucket": ray.put(bucket), "size": bucket.memory.nbytes, "parts": len(parts)}
