"""The form in which a judge must answer, and the reading of what it answers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from unirl_env.arguments.values import is_number
from unirl_env.errors import ConfigError, WireError
from unirl_env.rewards.texts.text_answers import final_part

_FENCE = re.compile(r"`{3,}|~{3,}")
_SPAN = re.compile(r"(`{1,2})(?!`)(.*[^`])\1", re.DOTALL)
"""A whole reply that is marked as code within a line."""
_QUOTED = re.compile(r"^[ \t]{0,9}>[ \t]?", re.MULTILINE)
"""How Markdown marks the lines of a quotation, which may hold a fence."""
MOST_LETTERS = 100_000
MOST_BRACES = 500
"""So many begin no object before a reply is given up."""
RESERVED = ("reason", "raw", "score")


class VerdictForm:
    """One JSON object with a number for each aspect, and a reason.

    Args:
        scale: The lowest and the highest number.
        aspects: Name to weight, none of them negative; None has one number, `score`.
        reason: Whether the judge must say why, in one sentence before the numbers: it costs tokens, and
            numbers that follow a reason are better ones.

    Raises:
        ConfigError: If the scale or the aspects cannot be used.

    Reference:
        Zheng et al. 2023 (LLM-as-a-judge), arXiv:2306.05685, section 3.4, on reasons before numbers.
    """

    def __init__(
        self,
        scale: Sequence[float] = (0, 10),
        aspects: Mapping[str, float] | None = None,
        reason: bool = True,
    ):
        numbers = isinstance(scale, Sequence) and len(scale) == 2 and all(map(is_number, scale))
        if not numbers or not scale[0] < scale[1]:
            raise ConfigError(
                f"`scale` must be the lowest and the highest number, got {scale!r}; try [0, 10]."
            )
        self.low, self.high = float(scale[0]), float(scale[1])
        weights = {"score": 1.0} if aspects is None else aspects
        sound = isinstance(weights, Mapping) and all(
            isinstance(name, str) and name and is_number(weight) and weight >= 0
            for name, weight in weights.items()
        )
        if not sound or not any(weights.values()) or (aspects and set(weights) & set(RESERVED)):
            raise ConfigError(
                f"`aspects` must be names (other than {', '.join(RESERVED)}) with weights from 0 on, not all "
                f"of them 0, got {aspects!r}; try {{alignment: 0.6, style: 0.4}}."
            )
        total = sum(weights.values())
        self.weights = {name: weight / total for name, weight in weights.items()}
        self.aspects, self.reason = aspects is not None, reason
        self.keys = (*(["reason"] if reason else []), *self.weights)

    def instructions(self) -> str:
        """What a judge is told."""
        number = f"<number from {self.low:g} to {self.high:g}>"
        members = ", ".join(
            f'"{key}": ' + ("<one short sentence>" if key == "reason" else number) for key in self.keys
        )
        return f"Reply with exactly one JSON object of this form, and with nothing else: {{{members}}}"

    def schema(self) -> dict[str, Any]:
        """The same as a JSON schema."""
        number = {"type": "number", "minimum": self.low, "maximum": self.high}
        return {
            "type": "object",
            "properties": {key: {"type": "string"} if key == "reason" else number for key in self.keys},
            "required": list(self.keys),
            "additionalProperties": False,
        }

    def read(self, said: Any) -> dict[str, float]:
        """The number of each aspect in what a judge said: one JSON object, and all of it as asked.

        Thoughts before it, up to `</think>`, do not count. The object is the whole reply, or stands in a
        fence of Markdown: of any marks and language, closed or not, and with words around it. Of several in
        fences, the last one counts that has the form: a judge may weigh before it says. Words around an
        object without a fence are no verdict, because an answer that is quoted may hold one.

        Raises:
            WireError: Naming what is wrong, in words for the judge.
        """
        if not isinstance(said, str):
            raise WireError(f"The reply must be a text, got {type(said).__name__}.")
        text = final_part(said).strip("\ufeff \t\r\n")
        if len(text) > MOST_LETTERS:
            raise WireError(f"The reply must have at most {MOST_LETTERS} letters, got {len(text)}.")
        if span := _SPAN.fullmatch(text):
            text = span[2]
        inside = _fenced(text)
        if inside is None:
            return self._numbers(_object(text))
        faults = []
        for found in reversed(_objects(inside)):
            try:
                return self._numbers(found)
            except WireError as error:
                faults.append(error)
        if faults:
            raise faults[0]
        return self._numbers(_object(inside))

    def _numbers(self, found: Any) -> dict[str, float]:
        if not isinstance(found, dict) or set(found) != set(self.keys):
            got = sorted(found) if isinstance(found, dict) else type(found).__name__
            raise WireError(f"The reply must be an object with the keys {list(self.keys)}, got {got!s:.200}.")
        if self.reason and not isinstance(found["reason"], str):
            raise WireError("`reason` must be a text.")
        for name in self.weights:
            if not self._fits(found[name]):
                raise WireError(
                    f"`{name}` must be a number from {self.low:g} to {self.high:g}, got {found[name]!r:.80}."
                )
        return {name: float(found[name]) for name in self.weights}

    def holds(self, numbers: Any) -> bool:
        """Whether these are numbers that `read` could have found."""
        return (
            isinstance(numbers, dict)
            and set(numbers) == set(self.weights)
            and all(self._fits(number) for number in numbers.values())
        )

    def in_unit(self, number: float) -> float:
        """A number of the scale in [0, 1]."""
        return (number - self.low) / (self.high - self.low)

    def mean(self, numbers: Mapping[str, float]) -> float:
        """The weighted mean of the aspects, on the scale."""
        return sum(weight * numbers[name] for name, weight in self.weights.items())

    def _fits(self, number: Any) -> bool:
        return is_number(number) and self.low <= number <= self.high


def _fenced(text: str) -> str | None:
    """What stands between the first fence and the last, or behind a single one; None without any.

    A fence inside a JSON text is a part of that text.
    """
    if text.startswith("{"):
        return None
    text = _QUOTED.sub("", text)
    marks = list(_FENCE.finditer(text))
    if not marks:
        return None
    return text[marks[0].end() : marks[-1].start() if len(marks) > 1 else None]


def _object(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_twins)
    except WireError:
        raise
    except (ValueError, RecursionError) as error:
        raise WireError(f"The reply must be one JSON object and nothing else, got {error}.") from error


def _objects(text: str) -> list[dict[str, Any]]:
    """All JSON objects of a text, in their order; those inside another one are a part of it.

    Raises:
        WireError: If one of them has a key twice.
    """
    decoder, found, failed = json.JSONDecoder(object_pairs_hook=_without_twins), [], 0
    start = text.find("{")
    while start >= 0 and failed < MOST_BRACES:
        try:
            one, end = decoder.raw_decode(text, start)
            found.append(one)
        except WireError:
            raise
        except (ValueError, RecursionError):
            end, failed = start + 1, failed + 1
        start = text.find("{", end)
    return found


def _without_twins(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise WireError("The reply must have every key once.")
    return found
