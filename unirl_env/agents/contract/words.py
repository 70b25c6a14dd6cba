"""A world of words of unequal length, small enough to add all of them up: where agents on tokens are judged.

`A` ends a word, or so do three letters. Lengths matter: it is by them that ways of weighing tokens differ,
and that a ratio of whole texts is not the policy's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unirl_env.models.process import State
from unirl_env.models.tabular import TabularTokens
from unirl_env.types import Prompt, Sample, Scores

LETTERS, LONGEST = 3, 3


class EndingWords(TabularTokens):
    """`TabularTokens` of three letters, in which the first letter ends a word.

    Args:
        ends: Whether it does; without, all words have three letters.
        **options: Of `TabularTokens`.
    """

    def __init__(self, *, ends: bool = True, **options: Any):
        super().__init__(**{"vocabulary": LETTERS, "length": LONGEST, **options})
        self.ends = ends

    def terminated(self, state: State) -> Tensor:
        """Whether the word has three letters, or ends in the letter that ends words."""
        over = super().terminated(state)
        if not self.ends:
            return over
        return over | ((state["count"] > 0) & (state["code"] % self.vocabulary == 0))

    def sample(self, state: State) -> list[Sample]:
        """The words, as letters and as numbers of letters."""
        found = []
        for code, count in zip(state["code"].tolist(), state["count"].tolist(), strict=True):
            word = [code // self.vocabulary**k % self.vocabulary for k in reversed(range(count))]
            found.append(Sample(text="".join(self.letters[i] for i in word), tokens=torch.tensor(word)))
        return found


def worth(samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
    """A reward of about -1 to 1 in which every letter, its place, the length and the prompt count."""
    return Scores(torch.tensor([_worth(s.text or "", p.text) for s, p in zip(samples, prompts, strict=True)]))


def _worth(word: str, prompt: str) -> float:
    places = sum((k + 1) * (ord(letter) - ord("A")) for k, letter in enumerate(word))
    return 0.6 * math.sin(1.3 * places + ord(prompt) - ord("A")) + 0.4 * math.cos(1.7 * len(word))


class Word(NamedTuple):
    """All M words after one prompt.

    Attributes:
        row: `[M, L]` int64, the row of the table at each letter.
        letter: `[M, L]` int64.
        mask: `[M, L]` float64, 1 where a word has a letter.
        reward: `[M]` float64.
    """

    row: Tensor
    letter: Tensor
    mask: Tensor
    reward: Tensor


def all_words(model: EndingWords, prompt: str) -> Word:
    """Every word that can follow `prompt`."""
    words = []
    for letters in product(range(model.vocabulary), repeat=model.length):
        end = letters.index(0) + 1 if model.ends and 0 in letters else model.length
        words.append(letters[:end])
    words = sorted(set(words))
    row, letter, mask = (torch.zeros(len(words), model.length, dtype=torch.int64) for _ in range(3))
    first = model.letters.index(prompt) * model.prefixes
    for m, word in enumerate(words):
        code = 0
        for k, chosen in enumerate(word):
            before = (model.vocabulary**k - 1) // (model.vocabulary - 1)
            row[m, k], letter[m, k], mask[m, k] = first + before + code, chosen, 1
            code = code * model.vocabulary + chosen
    texts = ["".join(model.letters[i] for i in word) for word in words]
    reward = torch.tensor([_worth(text, prompt) for text in texts], dtype=torch.float64)
    return Word(row, letter, mask.double(), reward)


def options(ends: bool) -> Mapping[str, Any]:
    """What `unirl/TabularTokens-v0` must be told to be this world."""
    return {
        "mdp": f"{__name__}:EndingWords",
        "model_options": {"ends": ends},
        "scorer": f"{__name__}:worth",
        "prompts": [chr(ord("A") + i) for i in range(LETTERS)],
    }
