"""What a paid endpoint has cost so far."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, TypeGuard

from unirl_env.arguments.values import is_number, is_whole
from unirl_env.errors import ConfigError

__all__ = ["Spending"]

MILLION = 1_000_000


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
