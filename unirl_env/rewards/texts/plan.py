"""Does the text name what the picture must show? The reward of a plan, before anything is drawn."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from unirl_env.prompts.shapes import COLOURS, COUNTS, PLACES, RELATIONS, SHAPES, Caption
from unirl_env.rewards.captions import caption_of, require_caption
from unirl_env.rewards.texts.text_answers import answer_part
from unirl_env.rewards.texts.thoughts import Thinking
from unirl_env.types import Prompt, Sample, Scores


def _pattern(words: Iterable[str], ending: str = "") -> re.Pattern[str]:
    """Any of `words` standing alone; the longest that fits."""
    return re.compile(rf"\b({'|'.join(sorted(words, key=len, reverse=True))}){ending}\b")


_ASPECTS = {
    "colour": _pattern(COLOURS),
    "shape": _pattern(SHAPES, "s?"),
    "place": _pattern([*PLACES, *RELATIONS, *COUNTS]),
}


def _wanted(caption: Caption) -> dict[str, set[str]]:
    where = caption.where or next(word for word, n in COUNTS.items() if n == len(caption.things))
    return {
        "colour": {colour for colour, _ in caption.things},
        "shape": {shape for _, shape in caption.things},
        "place": {where},
    }


class PlanScorer:
    """The share of colour, shape and place (or relation, or number) that a text names rightly.

    A text names an aspect rightly if it names what the caption does and nothing else of the kind: "red or
    blue" is wrong for a red circle. The caption is `metadata["caption"]` where a prompt has one, else its
    text; one outside the grammar of `unirl_env.prompts.shapes` gives an invalid score. Words count, their
    order does not; of a reasoning model, those after its thoughts. The aspects are reported as parts, 0 or 1
    each.

    Args:
        thinking: How thoughts are told from the answer: settings of `Thinking`, such as `{opened: true}`.

    Raises:
        ConfigError: If a setting of `thinking` is out of range.
    """

    name = "plan"
    needs = ("text",)
    pointwise = True
    asks = staticmethod(require_caption)

    def __init__(self, *, thinking: Mapping[str, Any] | None = None):
        self.thinking = Thinking.of(thinking)

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score the text of every sample against the caption of its prompt.

        Raises:
            ContractError: If a sample has no text.
        """
        columns: dict[str, list[float]] = {aspect: [] for aspect in _ASPECTS}
        for sample, prompt in zip(samples, prompts, strict=True):
            text = answer_part(sample, self.name, self.thinking).lower()
            caption = caption_of(prompt)
            wanted = None if caption is None else _wanted(caption)
            for aspect, pattern in _ASPECTS.items():
                right = math.nan if wanted is None else float(set(pattern.findall(text)) == wanted[aspect])
                columns[aspect].append(right)
        parts = {aspect: torch.tensor(column) for aspect, column in columns.items()}
        return Scores(torch.stack(list(parts.values())).mean(0), parts)
