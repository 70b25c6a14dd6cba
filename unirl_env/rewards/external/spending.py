"""How often a paid endpoint may be asked, and what it has cost so far."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from unirl_env.arguments.values import is_number, is_whole, require_number
from unirl_env.errors import ConfigError

MILLION = 1_000_000
MINUTE = 60.0


class Spending:
    """Tokens and money of this object's requests, counted from the replies' `usage`.

    Args:
        price: Money for a million tokens, `{"input": ..., "output": ...}`, in any currency; None counts
            tokens only.
        budget: Money after which nothing is asked any more. Requests under way are not counted yet, so it can
            be passed by as many as go at a time.

    Attributes:
        requests: Replies so far.
        prompt_tokens: Tokens of the requests.
        completion_tokens: Tokens of the replies.
        uncounted: Replies that did not say what they needed.

    Raises:
        ConfigError: If a price is missing or no amount of money.
    """

    def __init__(self, price: Mapping[str, float] | None = None, budget: float | None = None):
        if price is not None and (
            not isinstance(price, Mapping)
            or set(price) != {"input", "output"}
            or not all(_is_amount(each) for each in price.values())
        ):
            raise ConfigError(
                f"`price` must be {{input: ..., output: ...}} per million tokens, got {price!r}."
            )
        if budget is not None and (price is None or not _is_amount(budget)):
            raise ConfigError(f"`budget` must be an amount, together with a `price`, got {budget!r}.")
        self.price, self.budget = dict(price or {"input": 0.0, "output": 0.0}), budget
        self.requests = self.prompt_tokens = self.completion_tokens = self.uncounted = 0
        self._lock = threading.Lock()

    @property
    def money(self) -> float:
        """What all of it cost."""
        paid = self.prompt_tokens * self.price["input"] + self.completion_tokens * self.price["output"]
        return paid / MILLION

    def count(self, usage: Any) -> int | None:
        """Add one reply's `usage`; the tokens of it, or None if it does not say."""
        given = usage if isinstance(usage, Mapping) else {}
        prompt, completion = given.get("prompt_tokens"), given.get("completion_tokens", 0)
        with self._lock:
            self.requests += 1
            if not _is_count(prompt) or not _is_count(completion):
                self.uncounted += 1
                return None
            self.prompt_tokens += prompt
            self.completion_tokens += completion
            return prompt + completion

    def check(self) -> None:
        """Refuse to ask for more.

        Raises:
            ConfigError: If the budget is spent, or cannot be watched.
        """
        if self.budget is None:
            return
        if self.uncounted:
            raise ConfigError(
                f"`budget` must be watched by the replies' `usage`, got {self.uncounted} replies without it; "
                "try an endpoint that sends it, or no budget."
            )
        if self.money >= self.budget:
            raise ConfigError(
                f"`budget` must cover what is asked, got {self.budget:g} and {self.money:g} spent on "
                f"{self.requests} requests; try a higher one. With a `cache`, answers that were paid for are "
                "kept."
            )

    def __str__(self) -> str:
        words = f"{self.requests} requests, {self.prompt_tokens} + {self.completion_tokens} tokens"
        words += f", {self.money:.6g} of money" if any(self.price.values()) else ""
        return words + (f", {self.uncounted} without a count" if self.uncounted else "")


def _is_amount(value: Any) -> bool:
    return is_number(value) and value >= 0


def _is_count(value: Any) -> TypeGuard[int]:
    return is_whole(value) and value >= 0


class RateLimit:
    """Requests and tokens of a minute, spread evenly over it.

    A bucket that holds one request: the next may go once the last one has been paid off at the given rate.
    So no minute, wherever it begins, has more than its number. One object limits one process; several that
    share an account must share its limit out among them.

    Args:
        requests_per_minute: None for no limit.
        tokens_per_minute: None for no limit; each request says how many it may need at most, and gives back
            what it did not need.
        clock: Seconds that only grow.

    Raises:
        ConfigError: If a limit is not positive.
    """

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        for name, number in (
            ("requests_per_minute", requests_per_minute),
            ("tokens_per_minute", tokens_per_minute),
        ):
            if number is not None:
                require_number(name, number, 0, unit="or null for no limit")
        self._clock, self._lock = clock, threading.Lock()
        self._per_request = MINUTE / requests_per_minute if requests_per_minute else 0.0
        self._per_token = MINUTE / tokens_per_minute if tokens_per_minute else 0.0
        self._requests_free = self._tokens_free = self._held = clock()

    def reserve(self, tokens: float = 0, most: float = float("inf")) -> float | None:
        """The seconds after which one request of `tokens` may go; its place is then taken.

        Returns:
            None, with no place taken, if these are more than `most`.
        """
        with self._lock:
            now = self._clock()
            start = max(now, self._held)
            start = max(start, self._requests_free) if self._per_request else start
            start = max(start, self._tokens_free) if self._per_token else start
            if start - now > most:
                return None
            self._requests_free = start + self._per_request
            self._tokens_free = start + tokens * self._per_token
            return start - now

    def give_back(self, tokens: float) -> None:
        """Return tokens that a request reserved and did not use; a negative number takes more."""
        with self._lock:
            self._tokens_free -= tokens * self._per_token

    def hold(self, seconds: float) -> None:
        """Let nothing go for so long, because the server asked for it."""
        with self._lock:
            self._held = max(self._held, self._clock() + seconds)
