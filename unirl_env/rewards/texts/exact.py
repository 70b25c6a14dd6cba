"""Whether an answer is the expected text, up to how it is written."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import torch

from unirl_env.arguments.values import require
from unirl_env.rewards.asks import Ask
from unirl_env.rewards.texts.numerals import is_numeric, plain_numeral, plain_value
from unirl_env.rewards.texts.text_answers import answer_part, answer_text, expected_answers, last_boxed
from unirl_env.rewards.texts.thoughts import Thinking
from unirl_env.types import Prompt, Sample, Scores

STRIPS = ("thoughts", "boxed", "case", "space", "punctuation", "articles")
_MARKS = ("Po", "Ps", "Pe", "Pi", "Pf")
"""Unicode's marks of sentences, brackets and quotes; dashes are not among them, since -5 is not 5."""


class ExactScorer:
    r"""1 where the text is the expected answer, else 0.

    Both are compared in Unicode's composed form (NFC), so that an accent is the same however it was typed. An
    answer that the metadata hold as a number, not as a text, is any plain numeral of its value: 42.0 is `42`.

    Args:
        key: Where `Prompt.metadata` holds the expected answer, or a list of those that will do.
        strip: What does not count: `"thoughts"` (all but the answer behind them), `"boxed"` (all but what
            stands in the last `\boxed{...}`, if there is one), `"case"`, `"space"` (around the text, and how
            much of it between words), `"punctuation"` (around the text) and `"articles"` (a, an, the at its
            beginning).
        thinking: How thoughts are told from the answer: settings of `Thinking`, such as `{opened: true}`.

    Raises:
        ConfigError: If `strip` names something else, or a setting of `thinking` is out of range.
    """

    name = "exact"
    needs = ("text",)
    pointwise = True

    @staticmethod
    def asks_with(key: str = "answer", **options: Any) -> Ask:
        """What a prompt must have: an answer."""
        return partial(expected_answers, key=key)

    def __init__(
        self,
        key: str = "answer",
        *,
        strip: Sequence[str] = ("thoughts", "case", "space"),
        thinking: Mapping[str, Any] | None = None,
    ):
        unknown = sorted(set(strip) - set(STRIPS)) if not isinstance(strip, str) else [strip]
        require("strip", unknown, not unknown, f"a list of {list(STRIPS)}")
        self.asks = self.asks_with(key)
        self.key, self.strip, self.thinking = key, frozenset(strip), Thinking.of(thinking)

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score the text of every sample against the answer of its prompt.

        Raises:
            ContractError: If a prompt has no answer, or a sample no text.
        """
        value = [
            float(self._right(self._said(sample), prompt))
            for sample, prompt in zip(samples, prompts, strict=True)
        ]
        return Scores(torch.tensor(value))

    def _right(self, said: str, prompt: Prompt) -> bool:
        answers, normal = expected_answers(prompt, self.key), self._normalised(said)
        if not said.strip():
            # A text without an answer is not the answer that is only marks, nor any other.
            return False
        if normal in {self._normalised(answer) for answer in answers}:
            return True
        found = prompt.metadata[self.key]
        numbers = [one for one in (found if isinstance(found, list | tuple) else [found]) if is_numeric(one)]
        value = plain_value(normal) if numbers else None
        return value is not None and value in {Fraction(plain_numeral(number)) for number in numbers}

    def _said(self, sample: Sample) -> str:
        text = answer_text(sample, self.name)
        text = answer_part(sample, self.name, self.thinking) if "thoughts" in self.strip else text
        boxed = last_boxed(text) if "boxed" in self.strip else None
        return text if boxed is None else boxed

    def _normalised(self, text: str) -> str:
        text = unicodedata.normalize("NFC", text)
        text = unicodedata.normalize("NFC", text.casefold()) if "case" in self.strip else text
        text = " ".join(text.split()) if "space" in self.strip else text
        text = _without_marks(text) if "punctuation" in self.strip else text
        first, _, rest = text.partition(" ")
        return rest if "articles" in self.strip and rest and first.lower() in ("a", "an", "the") else text


def _without_marks(text: str) -> str:
    start, end = 0, len(text)
    while start < end and _is_mark(text[start]):
        start += 1
    while end > start and _is_mark(text[end - 1]):
        end -= 1
    return text[start:end]


def _is_mark(sign: str) -> bool:
    return sign.isspace() or sign in "_`" or (unicodedata.category(sign) in _MARKS and sign not in "%#&@")
