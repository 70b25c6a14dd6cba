"""Whether an answer is mathematically equal to the expected one."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache, partial
from importlib.util import find_spec
from itertools import product
from typing import Any, NamedTuple

import torch

from unirl_env.arguments.values import require
from unirl_env.errors import MissingExtra
from unirl_env.rewards.asks import Ask
from unirl_env.rewards.texts.algebra import same_number
from unirl_env.rewards.texts.arithmetic import TooLarge, exact_value
from unirl_env.rewards.texts.expressions import last_expression
from unirl_env.rewards.texts.math_process import Comparison, MathProcess
from unirl_env.rewards.texts.measures import Measure, measured
from unirl_env.rewards.texts.numerals import readings
from unirl_env.rewards.texts.plain_latex import plain_latex
from unirl_env.rewards.texts.text_answers import (
    answer_part,
    checked_rule,
    expected_answers,
    last_boxed,
)
from unirl_env.rewards.texts.thoughts import Thinking
from unirl_env.types import Prompt, Sample, Scores

logger = logging.getLogger(__name__)

_WORD = re.compile(r"[A-Za-z]{4,}(?: [A-Za-z]+)*")

_BLANK = re.compile(r"(?<!\w) | (?!\w)")
_LETTER_END = re.compile(r"[\d})] ?[A-Za-z](?:\^\{\d\})?$")


class MathScorer:
    r"""1 where the answer equals the expected one as mathematics, else 0.

    The answer is what stands in the last `\boxed{...}` after the thoughts; without one, the last complete
    expression there (`unirl_env.rewards.texts.expressions`). Numbers are compared exactly, whatever their
    size; a decimal with at least six decimals and six digits also stands for a value that it rounds or cuts
    off. Units are compared where both answers have one and not converted, `50\%` is 0.5 and also 50, sets
    know no order; what is no arithmetic is compared by math-verify. Texts that are equal word by word are
    equal.

    Algebra runs in a process of its own with a limit on processor time and memory, so the scorer works in
    threads and in Ray actors, and a busy machine changes no score. The part `parsed` is 1 where an answer
    could be read. An expected answer that cannot be read gives an invalid score, unless the texts are equal,
    and so does a process that the system ends several times: the answer is not at fault.

    Args:
        key: Where `Prompt.metadata` holds the expected answer, or a list of those that will do.
        unparsable: What an answer counts that cannot be read: `"zero"`, or `"invalid"`, which leaves the
            sample out of its group.
        timeout: Seconds of processor time for an answer; one that takes longer counts as one that cannot be
            read. Hundreds of hostile answers take as many seconds at most.
        max_characters: The longest answer that is read.
        thinking: How thoughts are told from the answer: settings of `Thinking`, such as `{opened: true}`.

    Raises:
        MissingExtra: If math-verify is not installed.
        ConfigError: If a setting is out of range.
    """

    name = "math"
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
        unparsable: str = "zero",
        timeout: float = 1.0,
        max_characters: int = 300,
        thinking: Mapping[str, Any] | None = None,
    ):
        if find_spec("math_verify") is None:
            raise MissingExtra("math-verify", "math")
        for name, number in (("timeout", timeout), ("max_characters", max_characters)):
            require(name, number, number > 0, "positive")
        self.asks = self.asks_with(key)
        self.key, self.unparsable = key, checked_rule(unparsable)
        self.max_characters, self.thinking = max_characters, Thinking.of(thinking)
        self._process = MathProcess(timeout)
        self._warned: set[str] = set()

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score the text of every sample against the answer of its prompt.

        Raises:
            ContractError: If a prompt has no answer, or a sample no text.
        """
        known: dict[tuple[str, tuple[str, ...]], Comparison | None] = {}
        value, parsed = [], []
        for sample, prompt in zip(samples, prompts, strict=True):
            given = self._given(answer_part(sample, self.name, self.thinking))
            results = []
            for expected in expected_answers(prompt, self.key):
                pair = (plain_latex(expected), given)
                if pair not in known:
                    known[pair] = self._compared(*pair)
                results.append(known[pair])
            read = any(result.given for result in results if result is not None)
            parsed.append(float(read) if read or None not in results else torch.nan)
            value.append(self._judged(results, prompt))
        return Scores(torch.tensor(value), {"parsed": torch.tensor(parsed)})

    def _given(self, part: str) -> tuple[str, ...]:
        """What a text's answer part may say, in plain LaTeX; several where it does not say where it ends."""
        found = last_boxed(part)
        if found is None:
            found = last_expression(part) or ""
            if found.endswith("!"):
                # At the end of a sentence it may be a factorial, or joy.
                ends = part.rstrip().rstrip("*").endswith("!")
                return tuple(filter(None, map(self._plain, [found, found[:-1]][: 1 + ends])))
        return tuple(filter(None, [self._plain(found)]))

    def _plain(self, answer: str) -> str:
        plain = plain_latex(answer) if len(answer) <= 2 * self.max_characters else ""
        return plain if len(plain) <= self.max_characters else ""

    def _compared(self, expected: str, given: tuple[str, ...]) -> Comparison | None:
        """How the expected answer and what was given compare; None where that could not be found out."""
        if not given:
            return Comparison(True, False, False)
        if any(_without_spaces(expected) == _without_spaces(answer) for answer in given):
            return Comparison(True, True, True)
        pairs = [
            (one, other)
            for answer in given
            for one, other in product(_readings(expected, False), _readings(answer, True))
        ]
        # Numbers first: they take microseconds.
        pairs.sort(key=lambda pair: pair[0].value is None or pair[1].value is None)
        known, said = False, False
        for one, other in pairs:
            found = self._pair(one, other)
            if found is None or found.equal:
                return found
            known, said = known or found.expected, said or found.given
        return Comparison(known, said, False)

    def _pair(self, one: _Reading, other: _Reading) -> Comparison | None:
        if one.large or other.large:
            return Comparison(not one.large, not other.large, False)
        another_unit = one.measure and other.measure and one.measure != other.measure
        product_of_number = (one.product and other.value is not None) or (
            other.product and one.value is not None
        )
        if another_unit or product_of_number:
            return Comparison(True, True, False)
        # A percent sign on one side only: 50% is 0.5, and the 50 of a question that asks for percent.
        scales = (1,) if one.percent == other.percent else (1, 100)
        best: Comparison | None = None
        for scale in scales:
            left, right = (1, scale) if one.percent else (scale, 1)
            best = self._scaled(one, other, left, right)
            if best is None or best.equal:
                break
        return best

    def _scaled(self, one: _Reading, other: _Reading, left: int, right: int) -> Comparison | None:
        # Most answers are plain numbers, for which algebra would take a thousand times as long.
        if one.value is not None and other.value is not None:
            return Comparison(True, True, same_number(one.value * left, other.value * right))
        return self._process.compare(_times(one.latex, left), _times(other.latex, right))

    def _judged(self, results: Sequence[Comparison | None], prompt: Prompt) -> float:
        known = [result for result in results if result is not None]
        if any(result.equal for result in known):
            return 1.0
        if len(known) < len(results):
            return torch.nan
        if not all(result.expected for result in known):
            if prompt.id not in self._warned:
                self._warned.add(prompt.id)
                logger.warning("The expected answer of %r cannot be read as mathematics.", prompt.id[:80])
            return torch.nan
        if not any(result.given for result in known):
            return torch.nan if self.unparsable == "invalid" else 0.0
        return 0.0


class _Reading(NamedTuple):
    """One of the meanings of an answer.

    Attributes:
        latex: The value in plain LaTeX, without its unit.
        value: What it comes to, where that is a fraction; None for what algebra has to say.
        unit: Pairs of a unit and its power.
        percent: Whether it is given in percent.
        large: Whether it holds a number that is too large to be read.
        product: Whether its last letter, which may be a unit, is read as a variable.
    """

    latex: str
    value: Fraction | None
    unit: tuple[tuple[str, int], ...]
    percent: bool
    large: bool
    product: bool

    @property
    def measure(self) -> tuple[tuple[str, int], ...]:
        """The unit, of which percent is one here: 50% is not 50 cm."""
        return self.unit or ((("%", 1),) if self.percent else ())


@lru_cache(maxsize=4096)
def _readings(plain: str, given: bool) -> tuple[_Reading, ...]:
    """All that an answer in plain LaTeX can mean, likeliest first."""
    measures = [measured(plain, attached=given)]
    if measures[0].unit and _LETTER_END.search(plain):
        # 3 m may be a length, and a product.
        measures.append(Measure(plain))
    found = []
    for index, measure in enumerate(measures):
        for latex in readings(measure.value):
            value, large = None, False
            try:
                value = exact_value(latex)
            except TooLarge:
                large = True
            # As letters side by side a word is a product, and equal to its anagrams.
            latex = rf"\text{{{latex}}}" if _WORD.fullmatch(latex) else latex
            found.append(_Reading(latex, value, measure.unit, measure.percent, large, index > 0))
    return tuple(found)


def _without_spaces(latex: str) -> str:
    """Spaces count between words and numbers only: 4 1/2 is not 41/2."""
    return _BLANK.sub("", latex)


def _times(latex: str, factor: int) -> str:
    return rf"{factor} \cdot ({latex})" if factor > 1 else latex
