"""Calls to remote runners and learners that lose neither an error's cause nor the news of a death."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch.distributed as dist
from ray.exceptions import RayActorError, RayError

from unirl_env.episode import EpisodeBatch
from unirl_env.errors import LearnerLost, NoWeights, RunnerLost
from unirl_env.rollouts.driver import RolloutRequest

PATIENCE = 3
"""Rounds in a row that may pass without any answer before the runners count as gone for good."""


def call_runners(
    env_runner_group: Any, method: str, calls: Mapping[int, Mapping[str, Any]]
) -> dict[int, Any]:
    """Call `method` on several remote runners at once.

    An error inside the method comes back as itself: RLlib would end the runner's process and report that.

    Args:
        env_runner_group: RLlib's group.
        method: A method of `GenerativeEnvRunner`.
        calls: Keyword arguments by runner number.

    Returns:
        Results by runner number. A runner that died is missing, where RLlib is told to restart runners; of
        one that has restarted and has no weights yet, that error is the result.

    Raises:
        RunnerLost: If a runner died and restarts are off.
    """
    numbers = list(calls)
    if not numbers:
        return {}
    try:
        outcomes = env_runner_group.foreach_env_runner(
            ["attempt"] * len(numbers),
            kwargs=[{"number": n, "method": method, "arguments": dict(calls[n])} for n in numbers],
            local_env_runner=False,
            remote_worker_ids=numbers,
        )
    except RayError as error:
        raise RunnerLost(
            f"A runner died during `{method}`: {type(error).__name__}: {error}. Its log tells why (often "
            "memory). Start again from the last checkpoint, or try "
            "`.fault_tolerance(restart_failed_env_runners=True)`."
        ) from error
    results = {}
    for number, outcome in outcomes:
        if isinstance(outcome, Exception) and not isinstance(outcome, NoWeights):
            raise outcome
        results[number] = outcome
    return results


Cause = Callable[[], tuple[int, Exception] | None]
"""Which learner said before it ended why it did, and its error; None where none said so."""


def _unknown() -> None:
    return None


@contextmanager
def learners_live(what: str, cause: Cause = _unknown) -> Iterator[None]:
    """A context in which the death of a learner is told as one.

    Args:
        what: What learners are asked for.
        cause: Why one ended.

    Raises:
        LearnerLost: If one died.
        Exception: Its own error, if it said why.
    """
    try:
        yield
    except RayActorError as error:
        if (told := cause()) is not None:
            told[1].add_note(f"Learner {told[0]} failed by this during {what}; the others were ended.")
            raise told[1] from None
        raise LearnerLost(
            f"A learner died during {what}: {type(error).__name__}: {error}. Its log tells why (often "
            "memory; try a smaller `micro_batch_size`). Start again from the last checkpoint."
        ) from error


def learner_results(results: Iterable[Any], what: str = "a call", cause: Cause = _unknown) -> list[Any]:
    """What learners returned, as RLlib's `foreach_learner` gives it; the first error is raised.

    Args:
        results: Of all learners.
        what: What they were asked for.
        cause: Why one ended.

    Raises:
        LearnerLost: If a learner died.
    """
    found = []
    with learners_live(what, cause):
        for result in results:
            if not result.ok:
                raise result.get()
            found.append(result.get())
    return found


def lost_learners(living: int, learners: int) -> LearnerLost:
    """What it is called when not all learners live any more."""
    return LearnerLost(
        f"All {learners} learners must live, got {living or 'none'}: the others have died. Their logs tell "
        "why (often memory; try a smaller `micro_batch_size`). Start again from the last checkpoint."
    )


def of_first_learner(learner_group: Any, function: Callable[[Any], Any], *, divided: bool) -> Any:
    """What `function(learner)` returns on the learner of rank 0; its error is raised.

    Where each learner has the whole policy, the first that lives answers.

    Args:
        learner_group: An `AgentLearnerGroup`.
        function: What is asked.
        divided: Whether learners hold parts of the policy: then all are asked, since none can answer alone.

    Raises:
        LearnerLost: If a learner died.
    """
    if not learner_group.is_remote:
        return learner_results(learner_group.foreach_learner(function))[0]
    if divided:
        ranked = learner_results(learner_group.foreach_learner(partial(_of_rank_0, function)))
        return next(answer for rank, answer in ranked if rank == 0)
    for number in range(len(learner_group)):
        if found := learner_results(learner_group.foreach_learner(function, remote_actor_ids=[number])):
            return found[0]
    raise lost_learners(0, len(learner_group))


def _of_rank_0(function: Callable[[Any], Any], learner: Any) -> tuple[int, Any]:
    rank, answer = dist.get_rank(), function(learner)
    return rank, None if rank else answer


def share_requests(
    env_runner_group: Any,
    method: str,
    requests: Sequence[Mapping[str, Any]],
    *,
    revive: Callable[[], Any],
    renew: Callable[[list[int]], Any],
) -> list[Any]:
    """Answer every request, on the local runner or shared out over the remote ones.

    A request whose runner died is given to another one. Noise is keyed, so the answer does not depend on who
    gives it, and an iteration never goes on with fewer episodes than were asked for.

    Args:
        env_runner_group: RLlib's group.
        method: What answers a request.
        requests: Keyword arguments.
        revive: Waits for a restarted runner where none is left, and gives it the present weights.
        renew: Gives the present weights to runners that have restarted before anybody noticed.

    Returns:
        The answers in the order of the requests.

    Raises:
        RunnerLost: If runners die faster than they come back, or restarts are off.
    """
    if env_runner_group.num_remote_env_runners() == 0:
        return [getattr(env_runner_group.local_env_runner, method)(**request) for request in requests]
    answers: dict[int, Any] = {}
    patience = PATIENCE
    while len(answers) < len(requests):
        if not env_runner_group.healthy_env_runner_ids():
            # Only now: waiting for dead runners takes time, and a living one may answer meanwhile.
            revive()
        waiting = [i for i in range(len(requests)) if i not in answers]
        turn = dict(zip(env_runner_group.healthy_env_runner_ids(), waiting, strict=False))
        results = call_runners(env_runner_group, method, {n: requests[i] for n, i in turn.items()})
        if bare := [number for number, result in results.items() if isinstance(result, NoWeights)]:
            renew(bare)
        answered = {turn[number]: result for number, result in results.items() if number not in bare}
        answers |= answered
        patience = PATIENCE if answered else patience - 1
        if not patience:
            raise RunnerLost(
                f"Runners must answer, got {PATIENCE} rounds of `{method}` without a single answer; "
                "their logs tell why they die."
            )
    return [answers[i] for i in range(len(requests))]


def play_on_learners(learner_group: Any, request: RolloutRequest, cause: Cause) -> EpisodeBatch:
    """The episodes of a request, played by all learners of a group together.

    Args:
        learner_group: RLlib's group, of learners that hold parts of the policy.
        request: What is asked for.
        cause: Why one ended.

    Raises:
        LearnerLost: If a learner died.
    """
    shares = request.deal_alike(learner_group.config.num_shares)
    results = learner_group.foreach_learner(lambda learner: learner.play(shares))
    answers = learner_results(results, "a rollout", cause)
    played = {number: batch for number, batch in answers if batch is not None}
    batches, following = [], request.first_group
    for number, share in enumerate(shares):
        batch = played[number]
        new = batch.group >= following  # others have been played for company
        if new.any():
            batches.append(batch if new.all() else batch.select(new))
        following = share.first_group + len(share.prompts)
    return EpisodeBatch.cat(batches) if len(batches) > 1 else batches[0]
