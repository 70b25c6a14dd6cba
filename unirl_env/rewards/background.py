"""A scorer that judges while its caller goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from unirl_env.rewards.compose import ScorerWrapper
from unirl_env.rewards.scoring import scorer_name
from unirl_env.types import Prompt, Sample, Scorer, Scores

__all__ = ["Background", "PendingScores", "settled"]


class PendingScores:
    """A judgement that is on its way.

    Args:
        ask: Waits for the judgement and returns it.
        done: Whether it is there; by default it is not known.
    """

    def __init__(self, ask: Callable[[], Scores], done: Callable[[], bool] = lambda: False):
        self._ask, self._done = ask, done

    def done(self) -> bool:
        """Whether the scores are known to be there, or to have failed."""
        return self._done()

    def result(self) -> Scores:
        """The scores; waits for them, and raises what the scorer raised."""
        return self._ask()


class Background(ScorerWrapper):
    """Another scorer in a thread of its own, which is asked in the order of the questions.

    There is one thread, so that a scorer is never called twice at a time, and is called with the same batches
    in the same order as without it: the scores are the same. Worth it where scoring leaves the processor to
    others: a service, an external judge, a network on another device.

    Args:
        scorer: What judges.
    """

    def __init__(self, scorer: Scorer):
        super().__init__(scorer, scorer_name(scorer))
        self._thread: ThreadPoolExecutor | None = None

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score at once, in the caller's own thread."""
        return self.scorer(samples, prompts)

    def begin(self, judge: Callable[..., Scores], *arguments: Any) -> PendingScores:
        """Start `judge(*arguments)` once everything that was begun before has ended."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"reward-{self.name}")
        future: Future[Scores] = self._thread.submit(judge, *arguments)
        return PendingScores(future.result, future.done)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_thread": None}


def settled(scores: Scores | PendingScores) -> Scores:
    """The scores themselves, waited for if they are on their way."""
    return scores.result() if isinstance(scores, PendingScores) else scores
