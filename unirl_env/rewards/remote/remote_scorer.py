"""A reward that another process gives: any scorer of a reward service, asked over HTTP."""

from __future__ import annotations

import logging
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unirl_env.arguments.signatures import PassesOptions
from unirl_env.arguments.values import require, require_number
from unirl_env.errors import ConfigError, ContractError, ServiceLost, WireError
from unirl_env.http import CallFailed, Deadline, checked_urls, together
from unirl_env.rewards.remote.catalogue import ServedReward, agreed, asked
from unirl_env.rewards.remote.service_client import ServiceClient, TooLarge
from unirl_env.rewards.scoring import note_fault
from unirl_env.rewards.wire import ScoreRequest, encode_request
from unirl_env.rewards.wire.messages import RANKS, require_plain, scores_from_json
from unirl_env.types import Prompt, Sample, Scores

logger = logging.getLogger(__name__)

FIELDS = (*RANKS, "text")
"""What a reward can look at."""


class RemoteScorer(PassesOptions, passes_to=ServiceClient):
    """The scores of a reward service, bitwise as its scorer gives them.

    Samples travel in requests that are sent at once to all replicas in turn. A request that gets no answer,
    or one that cannot be read, is sent again, elsewhere if possible, under the same id, so that the service
    does its work once. What stays unanswered makes invalid scores, and never zeros; if that is everything,
    the scorer fails as a whole.

    Args:
        urls: Where the service is: one URL, or those of replicas that serve the same reward.
        reward: The service's name of the reward.
        looks_at: The fields of `Sample` that the reward looks at, such as `"image"`, for those who must know
            it before the service is asked: the modes in which a text may end without its picture.
        request_size: The most samples of a request, if each is scored by itself; others go all in one.
        png: Send pictures as PNG: fewer bytes, more work, and colours rounded to 8 bits, so that scores may
            differ from local ones.
        check: Ask the service now whether it serves the reward, and what that looks at; otherwise, when the
            first samples come.
        name: The name in logs; by default, `reward`.
        **client: Those of `ServiceClient`: the token's variable, time-outs, attempts, concurrency.

    Attributes:
        pointwise: Whether the service says that each score depends on its own sample alone.
        needs: The fields of `Sample` that the service says it looks at; where it says nothing, `looks_at`.
        counts: `attempts`, `failures` (attempts without an answer), `full` (attempts that found no room) and
            `invalid` (samples without an answer) so far.

    Raises:
        ConfigError: If an option is out of range; with `check`, if no replica answers, or one does not serve
            this reward, wants another token, speaks another protocol, or says that the reward looks at
            something else than `looks_at`.
        MissingExtra: Without httpx or tenacity.
    """

    needs: tuple[str, ...] = ()
    pointwise = False

    def __init__(
        self,
        urls: str | Sequence[str],
        reward: str,
        *,
        looks_at: str | Sequence[str] = (),
        request_size: int = 16,
        png: bool = False,
        check: bool = True,
        name: str = "",
        **client: Any,
    ):
        require_number("request_size", request_size, 1, whole=True)
        require("reward", reward, isinstance(reward, str) and reward != "", "the service's name of a reward")
        self.needs = self.needs_with(looks_at)
        known = all(field in FIELDS for field in self.needs)
        require("looks_at", looks_at, known, f"one or several of {', '.join(FIELDS)}")
        self.reward = reward
        self.name = name or reward
        self.request_size = request_size
        self.png = png
        self._client = ServiceClient(checked_urls(urls), **client)
        self.counts: Counter[str] = self._client.counts
        self._served: ServedReward | None = None
        self._halved = False
        if check:
            self._know(agreed(self._client, reward))

    def __repr__(self) -> str:
        return f"RemoteScorer({list(self._client.urls)}, {self.reward!r})"

    @staticmethod
    def needs_with(looks_at: str | Sequence[str] = (), **options: Any) -> tuple[str, ...]:
        """What the words say that it looks at; the service is not asked."""
        if isinstance(looks_at, Sequence) and not isinstance(looks_at, str):
            return tuple(looks_at)
        return (looks_at,)

    @staticmethod
    def asks(prompt: Prompt) -> None:
        """Refuse what no service can be sent; what the service itself asks for, it says when it is asked."""
        require_plain(prompt)

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self._client.close()

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Let the service score the samples.

        Raises:
            ServiceLost: If no request was answered.
            ContractError: If the service cannot judge these samples.
            ConfigError: If it refuses for a reason that does not pass: another token, an unknown reward.
            WireError: If a sample or a prompt cannot be sent.
        """
        if len(samples) != len(prompts):
            raise ContractError(f"`prompts` must be one per sample, got {len(prompts)} for {len(samples)}.")
        if not len(samples):
            return Scores.failed(0)
        if self._served is None:
            self._know(asked(self._client, self.reward))
        size = self.request_size if self.pointwise else len(samples)
        pieces = [
            (samples[start : start + size], prompts[start : start + size])
            for start in range(0, len(samples), size)
        ]
        outcomes = [outcome for found in self._sent(pieces) for outcome in found]
        self._report(outcomes)
        return Scores.cat(outcome.scores for outcome in outcomes)

    def _sent(self, pieces: list[tuple[Sequence[Sample], Sequence[Prompt]]]) -> list[list[_Outcome]]:
        """What came of each piece; the first error that is none of a single request ends them all."""
        deadline = Deadline()
        self._client.open()  # here, once, and not by several threads at the same time
        if len(pieces) == 1:
            return [self._judged(*pieces[0], deadline)]
        found: list[Any] = together(
            lambda piece: self._judged(*piece, deadline), pieces, self._client.concurrency, deadline
        )
        return found

    def _judged(
        self, samples: Sequence[Sample], prompts: Sequence[Prompt], deadline: Deadline
    ) -> list[_Outcome]:
        """One request, or its halves where it is too large."""
        id, count = uuid.uuid4().hex, len(samples)
        body = encode_request(ScoreRequest(id, self.reward, tuple(samples), tuple(prompts)), png=self.png)

        def read(reply: Any) -> Scores:
            if not isinstance(reply, Mapping) or reply.get("id") != id or reply.get("reward") != self.reward:
                raise WireError("it must repeat the id and the reward of the request")
            return scores_from_json(reply.get("scores"), count)

        try:
            return [_Outcome(self._client.ask("/score", body, read, deadline))]
        except CallFailed as failed:
            return [_Outcome(Scores.failed(count), str(failed))]
        except TooLarge as error:
            if count == 1 or not self.pointwise:
                raise ContractError(
                    f"A request must be small enough for the service, got {len(body)} bytes for {count} "
                    f"sample(s), which cannot be parted; {error}; try `limits.body` of the service."
                ) from error
            self._tell_of_halves(count, error)
        half = (count + 1) // 2
        return [
            *self._judged(samples[:half], prompts[:half], deadline),
            *self._judged(samples[half:], prompts[half:], deadline),
        ]

    def _tell_of_halves(self, count: int, error: TooLarge) -> None:
        if not self._halved:
            self._halved = True
            logger.warning(
                "Requests of %d samples are too large for the service and are sent in halves; try a smaller "
                "`request_size`. %s",
                count,
                error,
            )

    def _report(self, outcomes: list[_Outcome]) -> None:
        causes = [outcome.cause for outcome in outcomes if outcome.cause]
        if not causes:
            return
        lost = sum(len(outcome.scores) for outcome in outcomes if outcome.cause)
        total = sum(len(outcome.scores) for outcome in outcomes)
        self.counts["invalid"] += lost
        if lost == total:
            raise ServiceLost(
                f"The reward service must answer, got no scores of `{self.name}` for {total} samples: "
                f"{causes[-1]}; try the service's log."
            )
        note_fault(f"{self.name}: {causes[-1]}")
        logger.warning(
            "The reward service gave no scores of `%s` for %d of %d samples, which count as invalid: %s",
            self.name,
            lost,
            total,
            causes[-1],
        )

    def _know(self, served: ServedReward) -> None:
        if self.needs and served.needs and set(self.needs) != set(served.needs):
            raise ConfigError(
                f"`looks_at` must be what the service says of {self.reward!r}, {list(served.needs)}, got "
                f"{list(self.needs)}."
            )
        self._served, self.pointwise = served, served.pointwise
        self.needs = served.needs or self.needs


@dataclass(frozen=True)
class _Outcome:
    """What came of a request.

    Attributes:
        scores: One per sample.
        cause: Why there are none, if so.
    """

    scores: Scores
    cause: str = ""
