"""Whether a text has the form that was asked for: a thought, then an answer in a box."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from unirl_env.arguments.values import require
from unirl_env.errors import ConfigError
from unirl_env.rewards.texts.text_answers import answer_text, last_boxed
from unirl_env.types import Prompt, Sample, Scores

RULES = ("think", "answer", "boxed")


class FormatScorer:
    r"""The weighted mean of rules that a text keeps; each rule is a part of 1 or 0.

    * `think`: the text begins with a thought, opened once and closed once, in this order.
    * `answer`: something that is not only space follows the thought.
    * `boxed`: what follows the thought holds `\boxed{...}`, closed and not empty.

    Where the thought is not closed exactly once, nothing follows it.

    Args:
        weights: Rule to weight; a rule that is not named, or has weight 0, is not counted and no part.
        tags: What opens a thought and what closes it.
        opened: Whether the prompt itself opens the thought, as some chat templates do; then the text has the
            closing tag only. None looks at the end of the prompt, which samples of environments bring.

    Raises:
        ConfigError: If there is no such rule, a weight is negative, or none is positive.
    """

    name = "format"
    needs = ("text",)
    pointwise = True

    def __init__(
        self,
        weights: Mapping[str, float] | None = None,
        *,
        tags: Sequence[str] = ("<think>", "</think>"),
        opened: bool | None = None,
    ):
        weights = dict.fromkeys(RULES, 1.0) if weights is None else dict(weights)
        if unknown := sorted(set(weights) - set(RULES)):
            raise ConfigError(f"`weights` must name rules of {list(RULES)}, got {unknown}.")
        if not all(isinstance(w, int | float) and math.isfinite(w) and w >= 0 for w in weights.values()):
            raise ConfigError(f"`weights` must be numbers from 0 on, got {weights}.")
        self.weights = {rule: float(weight) for rule, weight in weights.items() if weight}
        if not self.weights:
            raise ConfigError(f"`weights` must hold a positive one, got {weights}.")
        if isinstance(tags, str) or len(tags) != 2 or not all(tags) or tags[0] == tags[1]:
            raise ConfigError(f"`tags` must be two different texts, got {tags!r}.")
        require("opened", opened, opened in (None, True, False), "true, false or null")
        self.tags, self.opened = tuple(tags), opened

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score the form of every text.

        Raises:
            ContractError: If a sample has no text.
        """
        kept = [self._kept(answer_text(sample, self.name), sample.before) for sample in samples]
        parts = {rule: torch.tensor([float(row[rule]) for row in kept]) for rule in self.weights}
        total = sum(self.weights.values())
        summed = sum((weight * parts[rule] for rule, weight in self.weights.items()), torch.zeros(()))
        return Scores(summed / total, parts)

    def _kept(self, text: str, prompt_end: str) -> dict[str, bool]:
        opens, closes = self.tags
        opened = prompt_end.rstrip().endswith(opens) if self.opened is None else self.opened
        before, _, after = text.partition(closes)
        closed = text.count(closes) == 1
        if opened:
            thought = opens not in text
        else:
            thought = before.lstrip().startswith(opens) and text.count(opens) == 1
        rest = after.strip() if closed else ""
        return {
            "think": closed and thought,
            "answer": bool(rest),
            "boxed": bool((last_boxed(rest) or "").strip()),
        }
