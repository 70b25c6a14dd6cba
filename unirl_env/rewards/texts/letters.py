"""Rewards of words of capital letters, for `unirl/TabularTokens-v0`: functions of the word and its prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unirl_env.arguments.values import truth, whole
from unirl_env.errors import ConfigError, ContractError
from unirl_env.rewards.texts.text_answers import answer_text
from unirl_env.types import Prompt, Sample, Scores


class AlphabetScorer:
    """The share of a word's letters that go on in the alphabet from the prompt's letter.

    After `B`, out of five letters, the right word of four is `CDEA`; `CDBA` earns 0.75.

    Args:
        vocabulary: Of how many letters the alphabet is; it begins anew after the last one.
        step: How many letters each place is ahead of the one before; -1 goes backwards.
        whole_word: Pay 1 for the right word and nothing for every other one.

    Raises:
        ConfigError: If a number is not whole.
    """

    name = "alphabet"
    needs = ("text",)
    pointwise = True

    def __init__(self, vocabulary: int = 4, step: int = 1, whole_word: bool = False):
        self.vocabulary, self.step = whole("vocabulary", vocabulary, 2), whole("step", step)
        self.whole_word = truth("whole_word", whole_word)

    @staticmethod
    def asks(prompt: Prompt) -> None:
        """Refuse a prompt that there is no going on from.

        Raises:
            ContractError: If it is not one capital letter.
        """
        if len(prompt.text) != 1 or not "A" <= prompt.text <= "Z":
            raise ContractError(f"`alphabet` goes on from a prompt of one letter, got {prompt.text!r:.60}.")

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score words.

        Raises:
            ContractError: If a sample has no text, or a prompt is not one capital letter.
        """
        found = []
        for text, prompt in zip(_texts(self.name, samples), prompts, strict=True):
            self.asks(prompt)
            first = ord(prompt.text) - ord("A")
            right = [
                ord(letter) - ord("A") == (first + self.step * (place + 1)) % self.vocabulary
                for place, letter in enumerate(text)
            ]
            share = sum(right) / len(right) if right else 0.0
            found.append(float(share == 1.0) if self.whole_word else share)
        return Scores(torch.tensor(found))


class LetterScorer:
    """The share of a word that is one letter: what is easily earned, and says nothing of the prompt.

    Args:
        letter: Which.

    Raises:
        ConfigError: If it is not one letter.
    """

    name = "letter"
    needs = ("text",)
    pointwise = True

    def __init__(self, letter: str = "A"):
        if not isinstance(letter, str) or len(letter) != 1:
            raise ConfigError(f"`letter` must be one letter, got {letter!r}; try 'A'.")
        self.letter = letter

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score words.

        Raises:
            ContractError: If a sample has no text.
        """
        texts = _texts(self.name, samples)
        return Scores(torch.tensor([text.count(self.letter) / max(1, len(text)) for text in texts]))


def _texts(name: str, samples: Sequence[Sample]) -> list[str]:
    if any(sample.text is None for sample in samples):
        raise ContractError(f"`{name}` scores texts, got none; try `unirl/TabularTokens-v0`.")
    return [answer_text(sample, name) for sample in samples]
