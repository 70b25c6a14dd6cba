"""Whether an answer is mathematically equal to the expected one."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from importlib.util import find_spec
from typing import Any

import torch

from unirl_env.errors import ConfigError, MissingExtra
from unirl_env.rewards.texts.answers import (
    answer_part,
    checked_rule,
    expected_answers,
    last_boxed,
    last_expression,
)
from unirl_env.rewards.texts.math_process import Comparison, MathProcess
from unirl_env.rewards.texts.thoughts import Thinking
from unirl_env.types import Prompt, Sample, Scores

__all__ = ["MathScorer", "as_latex"]

logger = logging.getLogger(__name__)

# fmt: off
_SIGNS = str.maketrans(
    {
        **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # full-width forms
        "\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "·": r"\cdot ", "÷": "/", "\u2044": "/",
        "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "²": "^2", "³": "^3", "½": r"\frac12 ",
        "¼": r"\frac14 ", "¾": r"\frac34 ", "°": "", "\u00a0": " ", "\u202f": " ", "$": "",
    }
)
# fmt: on
"""Signs that people and models type, as LaTeX."""
_DECIMAL = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d{1,300})(?:\.\d{1,300})?")
_FRACTION = re.compile(r"([-+]?)(?:\\[dt]?frac\{(\d{1,300})\}\{(\d{1,300})\}|(\d{1,300}) ?/ ?(\d{1,300}))")
_CLEARLY = Fraction(1, 1000)
"""Numbers further apart are unequal to math-verify as well, which rounds to six digits."""
_THIN_SPACES = re.compile(r"(?<=\d)(?:\\[,!;: ]|\{,\}|\\thinspace)(?=\d)")
_WORD = re.compile(r"[A-Za-z]{4,}(?: [A-Za-z]+)*")


class MathScorer:
    r"""1 where the answer equals the expected one as mathematics, else 0.

    The answer is what stands in the last `\boxed{...}` after the thoughts; without one, the last number or
    expression there. Equality is math-verify's: `1/2` is `0.5` is `50\%`, sets know no order, units are not
    compared. Texts that are equal word by word are equal. Comparisons run in a process of their own with a
    limit on time and memory, so the scorer works in threads and in Ray actors.

    The part `parsed` is 1 where an answer could be read in time. An expected answer that math-verify cannot
    read gives an invalid score, unless the texts are equal: the answer is not at fault.

    Args:
        key: Where `Prompt.metadata` holds the expected answer, or a list of those that will do.
        unparsable: What an answer counts that cannot be read: `"zero"`, or `"invalid"`, which leaves the
            sample out of its group.
        timeout: Seconds for one comparison; an answer that takes longer counts as one that cannot be read.
        max_characters: The longest answer that is read.
        thinking: How thoughts are told from the answer: settings of `Thinking`, such as `{opened: true}`.

    Raises:
        MissingExtra: If math-verify is not installed.
        ConfigError: If a setting is out of range.
    """

    name = "math"
    needs = ("text",)
    pointwise = True

    def __init__(
        self,
        key: str = "answer",
        *,
        unparsable: str = "zero",
        timeout: float = 5.0,
        max_characters: int = 300,
        thinking: Mapping[str, Any] | None = None,
    ):
        if find_spec("math_verify") is None:
            raise MissingExtra("math-verify", "math")
        for name, number in (("timeout", timeout), ("max_characters", max_characters)):
            if not number > 0:
                raise ConfigError(f"`{name}` must be positive, got {number!r}.")
        self.key, self.unparsable = key, checked_rule(unparsable)
        self.max_characters, self.thinking = max_characters, Thinking.of(thinking)
        self._process = MathProcess(timeout)
        self._warned: set[str] = set()

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score the text of every sample against the answer of its prompt.

        Raises:
            ContractError: If a prompt has no answer, or a sample no text.
        """
        known: dict[tuple[str, str], Comparison] = {}
        value, parsed = [], []
        for sample, prompt in zip(samples, prompts, strict=True):
            given = self._given(answer_part(sample, self.name, self.thinking))
            results = []
            for expected in expected_answers(prompt, self.key):
                pair = (as_latex(expected), given)
                if pair not in known:
                    known[pair] = self._compared(*pair)
                results.append(known[pair])
            parsed.append(float(any(result.given for result in results)))
            value.append(self._judged(results, prompt))
        return Scores(torch.tensor(value), {"parsed": torch.tensor(parsed)})

    def _given(self, part: str) -> str:
        found = last_boxed(part)
        found = as_latex(last_expression(part) or "") if found is None else as_latex(found)
        return found if len(found) <= self.max_characters else ""

    def _compared(self, expected: str, given: str) -> Comparison:
        if not given:
            return Comparison(True, False, False)
        if expected == given:
            return Comparison(True, True, True)
        numbers = _as_number(expected), _as_number(given)
        # Most answers are plain numbers, for which algebra would take a thousand times as long.
        if None not in numbers:
            distance = abs(numbers[0] - numbers[1])
            if distance == 0 or distance > _CLEARLY:
                return Comparison(True, True, distance == 0)
        return self._process.compare(expected, given)

    def _judged(self, results: Sequence[Comparison], prompt: Prompt) -> float:
        if any(result.equal for result in results):
            return 1.0
        if not all(result.expected for result in results):
            if prompt.id not in self._warned:
                self._warned.add(prompt.id)
                logger.warning("The expected answer of %r cannot be read as mathematics.", prompt.id[:80])
            return torch.nan
        if not any(result.given for result in results):
            return torch.nan if self.unparsable == "invalid" else 0.0
        return 0.0


def _as_number(answer: str) -> Fraction | None:
    """A decimal number or a fraction of whole ones; None for all else."""
    if _DECIMAL.fullmatch(answer):
        return Fraction(answer.replace(",", ""))
    found = _FRACTION.fullmatch(answer)
    if found is None:
        return None
    sign, *parts = found.groups()
    top, bottom = (int(part) for part in parts if part is not None)
    return Fraction(-top if sign == "-" else top, bottom) if bottom else None


def as_latex(answer: str) -> str:
    """An answer as LaTeX in one spelling: plain signs, no dollars, no thin spaces between digits."""
    plain = " ".join(answer.replace(r"\$", "").translate(_SIGNS).split())
    plain = _THIN_SPACES.sub("", plain).strip().strip("*").rstrip(".,;").strip()
    plain = plain.removesuffix("percent").rstrip() + "%" if plain.endswith("percent") else plain
    # As letters side by side a word is a product, and equal to its anagrams.
    return rf"\text{{{plain}}}" if _WORD.fullmatch(plain) else plain
