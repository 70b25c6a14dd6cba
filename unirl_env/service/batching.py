"""One thread per reward, which merges what different clients ask into batches, where that changes nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from unirl_env.errors import UnirlError
from unirl_env.rewards.scoring import is_pointwise, score_safely
from unirl_env.types import Prompt, Sample, Scorer, Scores

logger = logging.getLogger(__name__)


class Busy(Exception):
    """More samples wait than may."""


@dataclass(frozen=True)
class Unjudgeable:
    """Why a request's samples cannot be judged at all, as the scorer says it."""

    message: str


@dataclass(frozen=True)
class Abandoned:
    """The service ended before the scorer did."""


Outcome = Scores | Unjudgeable | Abandoned
"""What comes of a request."""


class Watch(Protocol):
    """Who is told of every call of the scorer."""

    def scored(self, scores: Scores, seconds: float) -> None:
        """A call gave `scores` after `seconds`."""


class Batcher:
    """Calls one scorer, from one thread, for many clients.

    Requests to a pointwise scorer are merged up to `max_batch` samples, and larger ones are cut; any other
    scorer gets each request as it is, because there the company of a sample counts. A scorer that raises
    makes invalid scores, and samples that it refuses to judge end their own request only.

    Args:
        scorer: What judges.
        max_batch: The most samples of a call, if the scorer is pointwise.
        max_wait: Seconds that the first sample of a batch waits for company.
        max_waiting: The most samples that wait.
        watch: Who is told of every call.
        lock: Held during every call; one for all batchers of the same scorer.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        max_batch: int,
        max_wait: float,
        max_waiting: int,
        watch: Watch | None = None,
        lock: threading.Lock | None = None,
    ):
        self.scorer = scorer
        self.pointwise = is_pointwise(scorer)
        self.max_batch = max_batch
        self.max_wait = max_wait
        self.max_waiting = max_waiting
        self._watch = watch
        self._calling = lock or threading.Lock()
        self._jobs: deque[_Job] = deque()
        self._current: list[_Piece] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._call_began: float | None = None

    @property
    def call_seconds(self) -> float:
        """How long the call under way has lasted; 0 when there is none."""
        began = self._call_began
        return 0.0 if began is None else time.monotonic() - began

    @property
    def waiting(self) -> int:
        """Samples that no call has taken yet."""
        with self._changed:
            return self._waiting()

    def submit(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Future[Outcome]:
        """Ask for the scores of at least one sample.

        Raises:
            Busy: If there is no room, or the batcher is closed.
        """
        job = _Job(samples, prompts, time.monotonic())
        with self._changed:
            if self._closed or self._waiting() + len(samples) > self.max_waiting:
                raise Busy
            self._jobs.append(job)
            self._changed.notify_all()
            if self._thread is None:
                # A daemon: a scorer that hangs must not keep the process from ending.
                self._thread = threading.Thread(target=self._work, name="scoring", daemon=True)
                self._thread.start()
        return job.future

    def close(self, seconds: float = 0.0) -> None:
        """Take nothing more, and wait up to `seconds` for what was taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(seconds)

    def abandon(self) -> None:
        """Take nothing more, and end what was taken without scores; a call under way is not waited for."""
        with self._changed:
            self._closed = True
            jobs = [*(piece.job for piece in self._current), *self._jobs]
            self._jobs.clear()
            self._changed.notify_all()
        for job in jobs:
            job.finish(Abandoned())

    def _waiting(self) -> int:
        return sum(job.left for job in self._jobs)

    def _work(self) -> None:
        while batch := self._next():
            try:
                self._score(batch)
            except BaseException as error:  # a mistake of ours, and no reason to leave the others alone
                logger.exception("A batch could not be scored.")
                for piece in batch:
                    piece.job.fail(error)
            finally:
                self._current = []
            del batch  # holds pictures, and the wait for the next one may be long

    def _next(self) -> list[_Piece]:
        """What the next call takes; nothing when the batcher is closed and empty."""
        with self._changed:
            while not self._jobs:
                if self._closed:
                    return []
                self._changed.wait()
            if not self.pointwise:
                self._current = [self._jobs.popleft().take(None)]
                return self._current
            end = self._jobs[0].arrived + self.max_wait
            while self._waiting() < self.max_batch and not self._closed:
                left = end - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            pieces: list[_Piece] = []
            room = self.max_batch
            while self._jobs and room:
                piece = self._jobs[0].take(room)
                room -= len(piece.samples)
                pieces.append(piece)
                if not self._jobs[0].left:
                    self._jobs.popleft()
            self._current = pieces
            return pieces

    def _score(self, batch: list[_Piece]) -> None:
        samples = [sample for piece in batch for sample in piece.samples]
        prompts = [prompt for piece in batch for prompt in piece.prompts]
        began = time.monotonic()
        try:
            with self._calling:
                began = self._call_began = time.monotonic()
                scores = score_safely(self.scorer, samples, prompts)
        except UnirlError as error:
            if len(batch) > 1:  # whose samples they are is found by asking for each request alone
                for piece in batch:
                    self._score([piece])
                return
            self._drop(batch[0].job, Unjudgeable(str(error)))
            return
        except Exception:
            raise
        except BaseException as error:  # a scorer that ends its own process means itself
            logger.warning("A scorer raised %s; its samples count as invalid.", type(error).__name__)
            scores = Scores.failed(len(samples))
        finally:
            self._call_began = None
        if self._watch is not None:
            self._watch.scored(scores, time.monotonic() - began)
        start = 0
        for piece in batch:
            piece.job.add(_rows(scores, start, start + len(piece.samples)))
            start += len(piece.samples)

    def _drop(self, job: _Job, why: Unjudgeable) -> None:
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)
        job.finish(why)


@dataclass(eq=False)
class _Piece:
    """What one call takes of a job."""

    job: _Job
    samples: Sequence[Sample]
    prompts: Sequence[Prompt]


class _Job:
    """A request at a reward: rows that no call has taken yet, and scores that came back, both in order."""

    def __init__(self, samples: Sequence[Sample], prompts: Sequence[Prompt], arrived: float):
        self.arrived = arrived
        self.future: Future[Outcome] = Future()
        self.future.set_running_or_notify_cancel()  # a client that leaves does not end what others wait for
        self._samples, self._prompts = samples, prompts
        self._taken = 0
        self._scored: list[Scores] = []
        self._ending = threading.Lock()

    @property
    def left(self) -> int:
        return len(self._samples) - self._taken

    def take(self, most: int | None) -> _Piece:
        end = len(self._samples) if most is None else min(self._taken + most, len(self._samples))
        piece = _Piece(self, self._samples[self._taken : end], self._prompts[self._taken : end])
        self._taken = end
        return piece

    def add(self, scores: Scores) -> None:
        self._scored.append(scores)
        if sum(map(len, self._scored)) == len(self._samples):
            self.finish(self._scored[0] if len(self._scored) == 1 else Scores.cat(self._scored))

    def finish(self, outcome: Outcome) -> None:
        with self._ending:
            if not self.future.done():
                self.future.set_result(outcome)

    def fail(self, error: BaseException) -> None:
        with self._ending:
            if not self.future.done():
                self.future.set_exception(error)


def _rows(scores: Scores, start: int, end: int) -> Scores:
    if start == 0 and end == len(scores):
        return scores
    parts = {name: part[start:end] for name, part in scores.parts.items()}
    return Scores(scores.value[start:end], parts, scores.valid[start:end])
