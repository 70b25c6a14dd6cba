"""What a reward service's reply means to the one who asked: come again, ask for less, or mend a setting."""

from __future__ import annotations

from collections.abc import Mapping

from unirl_env.errors import ConfigError, ContractError, UnirlError
from unirl_env.errors.masks import hide
from unirl_env.rewards.refusals import PASSING, retry_after, words_of

__all__ = ["Again", "TooLarge", "check_reply"]

LONGEST_MESSAGE = 400


class Again(Exception):
    """An attempt without an answer that can be used; another one may have it.

    Attributes:
        full: The service is well and has no room, so that this was no failure.
        rest: Seconds for which it wants to be left alone.
    """

    def __init__(self, cause: str, *, full: bool = False, rest: float = 0.0):
        super().__init__(hide(cause))
        self.full = full
        self.rest = rest


class TooLarge(Exception):
    """The service takes smaller requests only."""


def check_reply(status: int, headers: Mapping[str, str], body: bytes, url: str, token_env: str) -> None:
    """Nothing, if the status says success.

    Args:
        status: Of the reply.
        headers: Of the reply, found by names in lower case.
        body: JSON `{"error": {"code": ..., "message": ...}}`, or whatever stands between us and the service
            says.
        url: What was asked, for messages.
        token_env: Where the token comes from, for messages.

    Raises:
        Again: If the same request may succeed later or elsewhere.
        TooLarge: If a smaller one may.
        ContractError: If these samples cannot be judged by this reward.
        ConfigError: If a setting must be mended first.
    """
    if status == 200:
        return
    said = _in_a_line(hide(words_of(body)))
    if status in PASSING or status >= 500:
        rest = retry_after(headers.get("retry-after"))
        raise Again(f"{url} answered {status}{said}", full=status == 429, rest=rest)
    if status == 413:
        raise TooLarge(f"{url} answered 413{said}")
    raise _refusal(status, said, url, token_env)


def _refusal(status: int, said: str, url: str, token_env: str) -> UnirlError:
    if status == 422:
        return ContractError(
            f"Samples must be such that the reward at {url} can judge them, got {status}{said}."
        )
    remedy = {
        401: f"try to set the environment variable {token_env} to the token of the service",
        403: f"try to set the environment variable {token_env} to a token that may ask for this",
        404: "try a reward that the service lists at /rewards, and check the URL",
    }.get(status, "try the same version of unirl_env on both sides, and check the URL")
    return ConfigError(f"The reward service at {url} must take the request, got {status}{said}; {remedy}.")


def _in_a_line(words: str) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in words).split())
    if len(line) > LONGEST_MESSAGE:
        line = f"{line[:LONGEST_MESSAGE]}..."
    return f": {line.rstrip('.')}" if line else ""
