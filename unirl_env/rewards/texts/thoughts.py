"""Which part of a text is thought, and which is answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from unirl_env.arguments.values import require
from unirl_env.errors import ConfigError

PUBLISHED = (
    ("<think>", "</think>"),  # Qwen3, DeepSeek-R1 and most others
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),  # Kimi-VL-Thinking
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, OpenThinker
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),  # gpt-oss
)
"""What opens and what closes a thought in published models and recipes."""
OPEN_THOUGHTS = ("no_answer", "whole")
_QUOTES = {"`": "`", "'": "'", '"': '"', "\u2018": "\u2019", "\u201c": "\u201d", "\u300c": "\u300d"}


@dataclass(frozen=True)
class Thinking:
    """How thoughts are told from answers.

    A text is read from left to right. What stands between a mark that opens a thought and the mark that
    closes it is no answer, and neither is what stands before the last thought; the answer is all that follows
    the last closing mark. A closing mark without an opening one closes a thought that the prompt opened.
    Marks are the same in capital and small letters and with blanks between their signs; one in quotes or
    backticks is spoken about and marks nothing. A second opening mark within a thought changes nothing.

    A thought that is not closed is open: the length limit, or the model, ended the text in the middle of it.
    It has no answer, whatever stands in it or before it.

    Attributes:
        marks: What opens and what closes a thought: one pair, or several of which any may occur; those of
            published models by default.
        opened: Whether the prompt itself opens the thought, as some chat templates do, so that a text without
            any mark is an open thought. None looks at the end of the prompt, which samples of environments
            bring (`Sample.before`).
        open_thought: What the answer of an open thought is: `"no_answer"`, or `"whole"`, all of the text.
        answer: What opens and closes the answer behind the thoughts, in models that mark it; where these
            stand there, only what is between the last of them counts. None for no such marks.

    Raises:
        ConfigError: If a setting is out of range.
    """

    marks: Sequence[str] | Sequence[Sequence[str]] = PUBLISHED
    opened: bool | None = None
    open_thought: str = "no_answer"
    answer: Sequence[str] | None = ("<answer>", "</answer>")

    def __post_init__(self) -> None:
        one = isinstance(self.marks, list | tuple) and all(isinstance(mark, str) for mark in self.marks)
        pairs = (self.marks,) if one else self.marks
        if not isinstance(pairs, list | tuple) or not pairs or not all(_is_pair(pair) for pair in pairs):
            raise ConfigError(
                f"`marks` must be two different texts that open and close a thought, or a list of such "
                f"pairs, got {self.marks!r}; try ['[THINK]', '[/THINK]']."
            )
        require("opened", self.opened, self.opened in (None, True, False), "true, false or null")
        if self.open_thought not in OPEN_THOUGHTS:
            raise ConfigError(
                f"`open_thought` must be one of {list(OPEN_THOUGHTS)}, got {self.open_thought!r}."
            )
        if self.answer is not None and not _is_pair(self.answer):
            raise ConfigError(f"`answer` must be two different texts or null, got {self.answer!r}.")
        object.__setattr__(self, "marks", tuple(tuple(pair) for pair in pairs))
        object.__setattr__(self, "answer", None if self.answer is None else tuple(self.answer))

    @classmethod
    def of(cls, settings: Thinking | Mapping[str, Any] | None) -> Thinking:
        """What `settings` say; the defaults for None.

        Raises:
            ConfigError: If there is no such setting, or one is out of range.
        """
        if isinstance(settings, cls):
            return settings
        if settings is not None and not isinstance(settings, Mapping):
            raise ConfigError(
                f"`thinking` must be a mapping of settings, got {settings!r}; try {{opened: true}}."
            )
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(settings or {}) - set(known)):
            raise ConfigError(f"`thinking` must have settings of {known}, got {unknown}.")
        return cls(**(settings or {}))

    def after_thoughts(self, text: str, before: str = "") -> str:
        """What follows the thoughts; nothing in an open one, unless `open_thought` says otherwise.

        Args:
            text: What the model said.
            before: What stands right before it, the end of the prompt; empty where that is unknown.
        """
        opened, start = self._opened_by(before), 0
        for mark in self._pattern.finditer(text):
            if _is_quoted(text, *mark.span()):
                continue
            pair, closes = divmod(int(str(mark.lastgroup)[1:]), 2)
            if closes and opened in (None, _ANY, pair):
                opened, start = None, mark.end()
            elif not closes and opened is None:
                opened = pair
        if opened is None:
            return text[start:]
        return text if self.open_thought == "whole" else ""

    def answer_of(self, text: str, before: str = "") -> str:
        """The answer: what follows the thoughts, or what is marked as the answer there."""
        rest = self.after_thoughts(text, before)
        if self.answer is None:
            return rest
        opening, closing = self._answer
        marked = [mark for mark in opening.finditer(rest) if not _is_quoted(rest, *mark.span())]
        if not marked:
            return rest
        start = marked[-1].end()
        ends = (mark for mark in closing.finditer(rest, start) if not _is_quoted(rest, *mark.span()))
        end = next(ends, None)
        return rest[start:] if end is None else rest[start : end.start()]

    def _opened_by(self, before: str) -> int | None:
        """The pair whose opening mark stands before the text."""
        if self.opened is not None:
            return _ANY if self.opened else None
        for number, (opening, _) in enumerate(self.marks):
            if re.search(f"(?:{_spelled(opening)})\\Z", before[-100:].rstrip(), re.IGNORECASE):
                return number
        return None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        marks = [mark for pair in self.marks for mark in pair]
        return re.compile("|".join(f"(?P<m{i}>{_spelled(m)})" for i, m in enumerate(marks)), re.IGNORECASE)

    @cached_property
    def _answer(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        opening, closing = (re.compile(_spelled(mark), re.IGNORECASE) for mark in self.answer or ())
        return opening, closing


_ANY = -1
"""The thought was opened by some mark, so that each closing one closes it."""


def _spelled(mark: str) -> str:
    """A pattern of `mark` with blanks between its words and signs."""
    return r"\s{0,3}".join(re.escape(part) for part in re.findall(r"\w+|[^\w\s]", mark))


def _is_quoted(text: str, start: int, end: int) -> bool:
    return start > 0 and end < len(text) and _QUOTES.get(text[start - 1]) == text[end]


def _is_pair(pair: Any) -> bool:
    return (
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and all(isinstance(mark, str) and re.search(r"[^\s]", mark) for mark in pair)
        and pair[0] != pair[1]
    )
