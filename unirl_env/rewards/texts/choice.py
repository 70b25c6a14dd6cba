"""Whether the right letter of a multiple choice was picked."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from unirl_env.errors import ConfigError, ContractError
from unirl_env.rewards.texts.answers import (
    answer_text,
    checked_rule,
    expected_answers,
    final_part,
    last_boxed,
)
from unirl_env.types import Prompt, Sample, Scores

__all__ = ["ChoiceScorer", "chosen_letter"]

_GAP = r"[\s*_:=\"'(\[{$.]{0,9}"
_ANSWER = re.compile(
    rf"(?i:\b(?:answer|choice|option)\b){_GAP}(?i:is\b|would be\b)?{_GAP}"
    r"(?i:(?:option|choice|letter)\b)?" + _GAP + r"(?:\\(?:text|mathrm|mathbf)\{\s?\(?)?"
    # A small letter is a choice only where no word can follow: "the answer is a dog".
    r"(?P<letter>[A-Z](?![\w'\u2019])|[a-z](?=\s{0,3}(?:[).:,;\]}*]|$)))"
)
_BRACKETS = re.compile(r"[(\[]\s?(?P<letter>[A-Za-z])\s?[)\]]")
# "A" and "I" before a small letter are words of a sentence.
_ALONE = re.compile(r"(?<![\w'\u2019.\\-])(?P<letter>[A-Z])(?![\w'\u2019-])(?!(?<=[AI])\s[a-z])")
_BOXED = re.compile(r"(?:\\(?:text|mathrm|mathbf|textbf)\s?\{)?\s*[(\[]?\s?(?P<letter>[A-Za-z])(?![A-Za-z])")


class ChoiceScorer:
    r"""1 where the text picks the expected letter, else 0.

    After the thoughts, the letter is looked for in this order: in the last `\boxed{B}`; in the last
    "answer: B" or "the answer is (B)"; in the last "(B)"; in the last capital letter that stands alone. The
    part `parsed` is 1 where one was found.

    Args:
        key: Where `Prompt.metadata` holds the expected letter, written in any of these ways.
        letters: The letters that are choices.
        unparsable: What a text without a letter counts: `"zero"`, or `"invalid"`, which leaves the sample
            out of its group.

    Raises:
        ConfigError: If a setting is out of range.
    """

    name = "choice"
    needs = ("text",)
    pointwise = True

    def __init__(self, key: str = "answer", *, letters: str = "ABCDEFGHIJ", unparsable: str = "zero"):
        if not re.fullmatch(r"[A-Z]+", letters):
            raise ConfigError(f"`letters` must be capital letters A to Z, got {letters!r}.")
        self.key, self.letters, self.unparsable = key, letters, checked_rule(unparsable)

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score the text of every sample against the letter of its prompt.

        Raises:
            ContractError: If a prompt's answer is no letter, or a sample has no text.
        """
        value, parsed = [], []
        for sample, prompt in zip(samples, prompts, strict=True):
            expected = {self._expected(answer, prompt) for answer in expected_answers(prompt, self.key)}
            given = chosen_letter(answer_text(sample, self.name), self.letters)
            parsed.append(float(given is not None))
            nothing = torch.nan if self.unparsable == "invalid" else 0.0
            value.append(nothing if given is None else float(given in expected))
        return Scores(torch.tensor(value), {"parsed": torch.tensor(parsed)})

    def _expected(self, answer: str, prompt: Prompt) -> str:
        letter = answer.upper() if len(answer) == 1 else chosen_letter(answer, self.letters)
        if letter is None or letter not in self.letters:
            raise ContractError(
                f"`Prompt.metadata[{self.key!r}]` must be one of the letters {self.letters}, got {answer!r} "
                f"for the prompt {prompt.id[:80]!r}; try the reward `exact` for answers in words."
            )
        return letter


def chosen_letter(text: str, letters: str = "ABCDEFGHIJ") -> str | None:
    """The letter that a text picks, as a capital; None if there is none of `letters`."""
    text = final_part(text).strip(" \n\t*.$")
    if len(text) == 1 and text.isascii() and text.upper() in letters:
        return text.upper()
    boxed = last_boxed(text)
    if boxed is not None and (found := _BOXED.match(boxed)) and found["letter"].upper() in letters:
        return found["letter"].upper()
    for pattern in (_ANSWER, _BRACKETS, _ALONE):
        found = [match["letter"].upper() for match in pattern.finditer(text)]
        found = [letter for letter in found if letter in letters]
        if found:
            return found[-1]
    return None
