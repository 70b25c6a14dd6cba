"""What a text loses that the length limit ended, or nearly did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from unirl_env.arguments.values import is_number, is_whole, require
from unirl_env.errors import ConfigError
from unirl_env.rewards.compose import ScorerWrapper, nested_parts
from unirl_env.rewards.scoring import score_safely
from unirl_env.rewards.texts.length import sample_tokens
from unirl_env.types import Prompt, Sample, Scorer, Scores

MODES = ("keep", "zero", "soft")


class Overlong(ScorerWrapper):
    """Another reward, changed where a text is too long.

    * `keep`: the reward as it is; only counts what was truncated.
    * `zero`: a truncated text gets 0, whatever the reward says, and were it that it failed.
    * `soft`: `reward + min(0, -(length - (max_tokens - buffer)) / buffer * factor)`, at least
      `reward - factor`: nothing is lost up to `max_tokens - buffer` tokens, `factor` is at `max_tokens`.

    Its parts are `scorer`, with the parts of that one below it, `truncated` (1 where the length limit ended
    the text) and in mode `soft` the `penalty`.

    Args:
        scorer: The reward that counts.
        mode: What happens to it.
        max_tokens: The length limit in tokens, that of the environment; for mode `soft`.
        buffer: The last tokens before the limit, over which the penalty grows; for mode `soft`.
        factor: The penalty at the limit.

    Raises:
        ConfigError: If the scorer cannot be called or a setting is out of range.

    Reference:
        Yu et al. 2025 (DAPO), arXiv:2503.14476, section 3.4, equation 13, with `factor=1`.
    """

    NAME = "overlong"

    @staticmethod
    def check_with(
        mode: str = "soft", max_tokens: int | None = None, buffer: int | None = None, **options: Any
    ) -> None:
        """Refuse mode `soft` without its two numbers.

        Raises:
            ConfigError: Saying what to try.
        """
        if mode != "soft":
            return
        if not is_whole(max_tokens) or not is_whole(buffer) or not 0 < buffer <= max_tokens:
            raise ConfigError(
                f"`max_tokens` and `buffer` must be whole numbers with 0 < buffer <= max_tokens in mode "
                f"'soft', got {max_tokens!r} and {buffer!r}; try the environment's `max_new_tokens` and "
                f"a fifth of it."
            )

    def __init__(
        self,
        scorer: Scorer,
        mode: str = "soft",
        *,
        max_tokens: int | None = None,
        buffer: int | None = None,
        factor: float = 1.0,
        name: str = "",
    ):
        super().__init__(scorer, name)
        require("mode", mode, mode in MODES, f"one of {list(MODES)}")
        self.check_with(mode, max_tokens, buffer)
        if mode == "soft":
            require("factor", factor, is_number(factor) and factor >= 0, "a number from 0 on")
        self.mode, self.max_tokens, self.buffer, self.factor = mode, max_tokens, buffer, float(factor)

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score every sample by the scorer, then look at its length.

        Raises:
            ContractError: If a sample has no tokens in mode `soft`.
        """
        scores = score_safely(self.scorer, samples, prompts)
        truncated = torch.tensor([sample.truncated for sample in samples], dtype=torch.bool)
        parts = {**nested_parts({"scorer": scores}), "truncated": truncated.float()}
        value, valid = scores.value, scores.valid
        if self.mode == "zero":
            value, valid = torch.where(truncated, 0.0, value), valid | truncated
        elif self.mode == "soft":
            parts["penalty"] = self._penalty(samples)
            value = value + parts["penalty"]
        return Scores(value, parts, valid)

    def _penalty(self, samples: Sequence[Sample]) -> torch.Tensor:
        length = torch.tensor([sample_tokens(sample, self.name) for sample in samples], dtype=torch.float32)
        assert self.max_tokens is not None and self.buffer is not None  # there in mode `soft`
        beyond = (length - (self.max_tokens - self.buffer)) / self.buffer
        return 0.0 - self.factor * beyond.clamp(0, 1)
