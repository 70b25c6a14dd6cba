"""Words of letters, written by a table of logits: a world of tokens about which everything is known exactly.

A prompt is one letter out of V; a policy writes L letters after it. Its network is a table with a row for
every prompt and everything that may have been written, so that every policy there is can be reached, the
optimum among them. Because there are few words, expectations are sums over all of them
(`unirl_env.functional.sequences`, `unirl_env.bench.exact:tokens`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

import unirl_env.functional as F
from unirl_env.arguments.values import number, whole
from unirl_env.errors import ConfigError, PromptError
from unirl_env.functional.sequences import num_prefixes
from unirl_env.models.process import MDP, Noise, State
from unirl_env.types import Prompt, Sample

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MOST_WORDS = 20_000
CELL = 8
"""Pixels of a letter's place in a picture."""


class TableNetwork(nn.Module):
    """Logits `[N, V]` of the rows of a table.

    Args:
        logits: `[R, V]`, where training starts.
    """

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, seen: Mapping[str, Tensor]) -> Tensor:
        """The logits at `row` `[N]`."""
        return nn.functional.embedding(seen["row"], self.logits)


class TabularTokens(MDP):
    """Words of `length` letters out of an alphabet of `vocabulary`, after a prompt of one letter.

    There are no adapters: all weights are trained (`lora_rank: null`).

    Args:
        vocabulary: V, at most 26.
        length: L; V^L may be at most 20 000.
        spread: Standard deviation of the untrained logits, in nats; 0 writes every word alike.
        key: What the untrained logits follow from.
        **options: Of every process.

    Raises:
        ConfigError: If a size is out of range, or there are too many words to add up.
    """

    def __init__(
        self, vocabulary: int = 4, length: int = 4, *, spread: float = 1.0, key: int = 0, **options: Any
    ):
        super().__init__(**options)
        self.vocabulary, self.length = whole("vocabulary", vocabulary, 2), whole("length", length, 1)
        self.spread, self.key = number("spread", spread), whole("key", key, 0)
        if self.vocabulary > len(LETTERS) or self.vocabulary**self.length > MOST_WORDS:
            raise ConfigError(
                f"`vocabulary` must be at most {len(LETTERS)} and vocabulary ** length at most {MOST_WORDS}, "
                f"so that all words can be added up, got {vocabulary} and {length}; try 4 and 5."
            )
        self.letters = LETTERS[: self.vocabulary]
        self.prefixes = num_prefixes(self.vocabulary, self.length)
        self.action_space = spaces.Discrete(self.vocabulary)
        self.observation_spaces = {"row": spaces.Discrete(self.vocabulary * self.prefixes)}
        self.max_steps = self.length

    def initial(self, prompts: Sequence[Prompt], noise: Noise) -> State:
        """Nothing written yet.

        Raises:
            PromptError: If a prompt is none of the letters.
        """
        for prompt in prompts:
            if len(prompt.text) != 1 or prompt.text not in self.letters:
                raise PromptError(
                    f"A prompt must be one of the letters {self.letters}, got {prompt.text!r:.60}; try "
                    f"prompts=['A', 'B'], or a larger `vocabulary`."
                )
        asked = torch.tensor([self.letters.index(prompt.text) for prompt in prompts], device=noise.device)
        return {"asked": asked, "code": torch.zeros_like(asked), "count": torch.zeros_like(asked)}

    def transition(self, state: State, action: Tensor, noise: Noise) -> State:
        """One letter more; `code` reads the letters as the digits of a number."""
        code = state["code"] * self.vocabulary + action
        return {**state, "code": code, "count": state["count"] + 1}

    def terminated(self, state: State) -> Tensor:
        """Whether the word is whole."""
        return state["count"] >= self.length

    def observation(self, state: State) -> Mapping[str, Tensor]:
        """The row of the table; of whole words, that of their last letter."""
        over = self.terminated(state)
        count = state["count"] - over.long()
        code = torch.where(over, state["code"] // self.vocabulary, state["code"])
        first = (self.vocabulary**count - 1) // (self.vocabulary - 1)
        return {"row": state["asked"] * self.prefixes + first + code}

    def sample(self, state: State) -> list[Sample]:
        """The words, as letters and as numbers of letters."""
        place = self.vocabulary ** torch.arange(self.length - 1, -1, -1)
        words = state["code"].cpu()[:, None] // place % self.vocabulary
        return [
            Sample(text="".join(self.letters[token] for token in word), tokens=tokens)
            for word, tokens in zip(words.tolist(), words.unbind(), strict=True)
        ]

    def pictures(self, state: State) -> list[Tensor]:
        """A column for each letter that is written, a dark place in it for which one it is."""
        shown = torch.ones(len(state["code"]), self.vocabulary, self.length)
        rows = torch.arange(len(shown))
        for k in range(self.length):
            behind = state["count"].cpu() - 1 - k
            letter = state["code"].cpu() // self.vocabulary ** behind.clamp_min(0) % self.vocabulary
            shown[rows, letter, k] = (behind < 0).float()
        large = shown.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)
        return list(large[:, None].expand(-1, 3, -1, -1))

    def table(self) -> Tensor:
        """The untrained logits `[V * R, V]` float32, the rows of each prompt together."""
        generator = torch.Generator().manual_seed(F.derive_seed("tabular tokens", self.key))
        shape = (self.vocabulary * self.prefixes, self.vocabulary)
        return self.spread * torch.randn(shape, generator=generator)

    def network(self) -> nn.Module:
        """A `TableNetwork` at the untrained logits."""
        return TableNetwork(self.table()).to(self.device, self.dtype).eval()
