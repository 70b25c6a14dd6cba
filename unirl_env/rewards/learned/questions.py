"""Questions about a picture, their expected answers, and the ways in which a model may spell these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unirl_env.errors import ContractError
from unirl_env.types import Prompt

__all__ = ["Question", "questions_of", "spellings", "token_sequences"]

NUMBERS = dict(
    zip("zero one two three four five six seven eight nine ten".split(), map(str, range(11)), strict=True)
)
WORDS = {number: word for word, number in NUMBERS.items()}
OPPOSITE = {"yes": "no", "no": "yes"}


@dataclass(frozen=True)
class Question:
    """A question about a picture.

    Attributes:
        text: As it is asked.
        answers: Any of them is right.
    """

    text: str
    answers: tuple[str, ...]

    @property
    def opposite(self) -> str | None:
        """The wrong answer of a question of yes or no; None of any other."""
        return OPPOSITE.get(self.answers[0].lower()) if len(self.answers) == 1 else None


def questions_of(prompt: Prompt, field: str) -> tuple[Question, ...]:
    """The questions of a prompt; none where its metadata hold none.

    Args:
        prompt: Whose `metadata[field]` is a list of `{"question": ..., "answer": ...}` or of
            `[question, answer]`. An answer is a text, a number, a truth value for yes or no, or a list of
            answers any of which is right.
        field: The entry of the metadata.

    Raises:
        ContractError: If the entry is something else.
    """
    listed = prompt.metadata.get(field)
    if listed is None:
        return ()
    if isinstance(listed, str | Mapping) or not isinstance(listed, Sequence):
        raise _malformed(prompt, field, listed)
    return tuple(_question(prompt, field, entry) for entry in listed)


def spellings(answer: str) -> tuple[str, ...]:
    """An answer as it stands, in lower case and with a capital; a number up to ten in digits and letters."""
    other = NUMBERS.get(answer.lower()) or WORDS.get(answer)
    plain = [answer] if other is None else [answer, other]
    return tuple(
        dict.fromkeys(word for each in plain for word in (each, each.lower(), each[0].upper() + each[1:]))
    )


def token_sequences(
    answers: Sequence[str], encode: Callable[[str], Sequence[int]]
) -> tuple[tuple[int, ...], ...]:
    """The tokens by which a model may say one of `answers`, no sequence the beginning of another.

    So they exclude each other, and their probabilities add up. A leading space is tried where it makes one
    token with the word.
    """
    found: dict[tuple[int, ...], None] = {}
    for answer in answers:
        for word in spellings(answer):
            found[tuple(encode(word))] = None
            spaced = tuple(encode(f" {word}"))
            if len(spaced) == 1:
                found[spaced] = None
    return tuple(
        each
        for each in found
        if each and not any(each[: len(other)] == other for other in found if other and other != each)
    )


def _question(prompt: Prompt, field: str, entry: Any) -> Question:
    answer: Any
    if isinstance(entry, Mapping):
        text, answer = entry.get("question"), entry.get("answer")
    elif isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) == 2:
        text, answer = entry
    else:
        raise _malformed(prompt, field, entry)
    listed = isinstance(answer, Sequence) and not isinstance(answer, str)
    answers = tuple(_answer(each) for each in (answer if listed else [answer]))
    if not isinstance(text, str) or not text.strip() or not answers or not all(answers):
        raise _malformed(prompt, field, entry)
    return Question(text.strip(), answers)


def _answer(answer: Any) -> str:
    if isinstance(answer, bool):  # what YAML makes of an unquoted yes
        return "yes" if answer else "no"
    return str(answer).strip() if isinstance(answer, str | int) else ""


def _malformed(prompt: Prompt, field: str, got: Any) -> ContractError:
    return ContractError(
        f"`Prompt.metadata[{field!r}]` must be a list of questions with their answers, got "
        f"{str(got)[:120]!r} in the prompt {prompt.id[:80]!r}; try "
        '[{"question": "How many cows are there?", "answer": "three"}].'
    )
