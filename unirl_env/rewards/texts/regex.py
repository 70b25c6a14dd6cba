"""Whether a text fits a regular expression, in bounded time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from unirl_env.arguments.values import is_number, require
from unirl_env.errors import ConfigError
from unirl_env.rewards.asks import Ask
from unirl_env.rewards.scoring import PromptFaults
from unirl_env.rewards.texts.text_answers import answer_part, answer_text
from unirl_env.rewards.texts.thoughts import Thinking
from unirl_env.types import Prompt, Sample, Scores

MODES = ("search", "fullmatch")
EXPECTED = ("match", "no_match")
PARTS = ("whole", "answer")
FLAGS = {"i": "IGNORECASE", "m": "MULTILINE", "s": "DOTALL", "x": "VERBOSE", "a": "ASCII"}


class RegexScorer:
    r"""1 where the text fits a pattern, else 0; the other way round for `expected="no_match"`.

    Patterns are those of the package `regex`, which is the standard library's `re` and more, and can be
    stopped: a pattern like `(a+)+$` takes exponential time on the text of a model that has learnt to write
    the letter a. A text on which the pattern does not end in time is invalid and named in a warning; how many
    those are depends on the machine, so `timeout` should be far above what sound texts take (microseconds).

    Invalid with a warning is also a prompt without a pattern, or with one that cannot be read: the text is
    not at fault.

    Args:
        pattern: What to look for; by default `Prompt.metadata[key]`, a pattern of each prompt's own.
        mode: `"search"` anywhere in the text, or `"fullmatch"` of the whole text.
        flags: Letters: `i` (small and capital letters alike), `m` (`^` and `$` at lines), `s` (the dot fits
            ends of lines), `x` (blanks and comments in the pattern), `a` (`\w` and its like are ASCII).
        expected: `"match"` or `"no_match"`.
        timeout: Seconds for one text.
        key: Where `Prompt.metadata` holds the pattern if `pattern` is None.
        part: What is looked at: the `"whole"` text, thoughts included, or its `"answer"`; a text without an
            answer then counts 0, whatever is expected of it.
        thinking: How thoughts are told from the answer: settings of `Thinking`; for `part="answer"`.

    Raises:
        ConfigError: If a setting is out of range or the pattern cannot be read.
    """

    name = "regex"
    needs = ("text",)
    pointwise = True

    @staticmethod
    def asks_with(
        pattern: str | None = None, *, flags: str = "", key: str = "regex", **options: Any
    ) -> Ask | tuple[()]:
        """What a prompt must have: a pattern, unless there is one for all."""
        return () if pattern is not None else partial(_pattern_of, key=key, flags=flags)

    def __init__(
        self,
        pattern: str | None = None,
        *,
        mode: str = "search",
        flags: str = "",
        expected: str = "match",
        timeout: float = 1.0,
        key: str = "regex",
        part: str = "whole",
        thinking: Mapping[str, Any] | None = None,
    ):
        named = (("mode", mode, MODES), ("expected", expected, EXPECTED), ("part", part, PARTS))
        for label, value, choices in named:
            require(label, value, value in choices, f"one of {list(choices)}")
        if not isinstance(flags, str) or set(flags) - set(FLAGS):
            raise ConfigError(f"`flags` must be letters of {''.join(FLAGS)!r}, got {flags!r}.")
        if not is_number(timeout) or not timeout > 0:
            raise ConfigError(f"`timeout` must be a positive number of seconds, got {timeout!r}; try 1.0.")
        self.mode, self.flags, self.expected = mode, flags, expected
        self.timeout, self.key = float(timeout), key
        self.part, self.thinking = part, Thinking.of(thinking)
        self._cannot_judge = PromptFaults(self.name)
        self._compiled: dict[str, Any] = {}
        self._pattern = pattern
        self.asks = self.asks_with(pattern, flags=flags, key=key)
        if pattern is not None:
            try:
                self._compile(pattern)
            except _BadPattern as error:
                raise ConfigError(
                    f"`pattern` must be a regular expression, got {pattern!r}: {error}."
                ) from error

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score the text of every sample.

        Raises:
            ContractError: If a sample has no text.
        """
        texts = [self._text(sample) for sample in samples]
        value = [self._judged(text, prompt) for text, prompt in zip(texts, prompts, strict=True)]
        return Scores(torch.tensor(value, dtype=torch.float32))

    def _text(self, sample: Sample) -> str:
        if self.part == "whole":
            return answer_text(sample, self.name)
        return answer_part(sample, self.name, self.thinking)

    def _judged(self, text: str, prompt: Prompt) -> float:
        try:
            if self._pattern is not None:
                compiled = self._compile(self._pattern)
            else:
                compiled = self._compile(prompt.metadata.get(self.key), self.key)
        except _BadPattern as error:
            return self._invalid(prompt, str(error))
        if self.part == "answer" and not text.strip():
            return 0.0
        look = compiled.fullmatch if self.mode == "fullmatch" else compiled.search
        try:
            # `concurrent` lets other threads go on meanwhile.
            found = look(text, timeout=self.timeout, concurrent=True) is not None
        except (TimeoutError, MemoryError) as error:
            return self._invalid(
                prompt,
                f"{type(error).__name__} on a text of {len(text)} characters; the limit is {self.timeout} s",
            )
        return float(found == (self.expected == "match"))

    def _compile(self, pattern: Any, key: str = "") -> Any:
        if not isinstance(pattern, str) or pattern not in self._compiled:
            compiled = _compiled(pattern, self.flags, key)
            if len(self._compiled) >= 4096:
                self._compiled.clear()
            self._compiled[pattern] = compiled
        return self._compiled[pattern]

    def _invalid(self, prompt: Prompt, why: str) -> float:
        self._cannot_judge(prompt, why)
        return math.nan


class _BadPattern(ValueError):
    """A pattern that cannot be read."""


def _pattern_of(prompt: Prompt, key: str, flags: str) -> Any:
    return _compiled(prompt.metadata.get(key), flags, key)


def _compiled(pattern: Any, flags: str, key: str = "") -> Any:
    """A pattern, that of all prompts or of one in `metadata[key]`."""
    import regex

    what = f"`metadata[{key!r}]` is no regular expression: " if key else ""
    if pattern is None and key:
        raise _BadPattern(f"`metadata[{key!r}]` is missing")
    if not isinstance(pattern, str):
        raise _BadPattern(f"{what}it is no text, but {type(pattern).__name__}")
    letters = 0
    for letter in flags:
        letters |= getattr(regex, FLAGS[letter])
    try:
        return regex.compile(pattern, letters)
    except (regex.error, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _BadPattern(f"{what}{error}") from error
