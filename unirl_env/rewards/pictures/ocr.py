"""Whether the text that was asked for can be read in the picture."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from unirl_env.arguments.values import is_number, is_whole, require
from unirl_env.errors import ConfigError
from unirl_env.media.pixels import in_8_bits
from unirl_env.rewards.asks import Ask
from unirl_env.rewards.faults import PromptFaults
from unirl_env.rewards.inputs import picture_of
from unirl_env.rewards.pictures.ocr_engines import ENGINES
from unirl_env.types import Prompt, Sample, Scores

__all__ = ["OCRScorer", "edit_distance"]

MATCHES = ("fuzzy", "exact")
_QUOTED = re.compile(r'"([^"]+)"|\u201c([^\u201d]+)\u201d')


class OCRScorer:
    """How much of the expected text is read in the picture: `1 - min(d, n) / n`.

    `n` is the length of the expected text, `d` the edit distance (Levenshtein) of what was read to it, both
    in small letters, without blanks, and in Unicode's compatible form (full-width signs are plain ones). A
    picture in which nothing is read scores 0: it was read, and the text is not there.

    The expected text is `Prompt.metadata[key]`, else what stands in the first double quotes of the prompt. A
    prompt that has neither is invalid, with a warning that names it.

    The parts are `distance` (`d`) and `found` (how many characters were read, without blanks).

    Args:
        engine: `"rapidocr"`, or `"tesseract"` if the program is installed.
        match: `"fuzzy"` as above, or `"exact"`: 1 for `d = 0`, else 0.
        contained: The expected text may stand anywhere in what was read: then `d` is 0. A policy may write
            anything else around it; without, every other character counts.
        confidence: The least confidence of what is read, in [0, 1].
        threads: Threads of the engine.
        key: Where `Prompt.metadata` holds the expected text.

    Raises:
        MissingExtra: If RapidOCR is not installed.
        ConfigError: If a setting is out of range, or Tesseract is not installed.

    Reference:
        Liu et al. 2025 (Flow-GRPO), arXiv:2505.05470, section 5.1: `max(1 - d / n, 0)`; `contained` is what
        its published reward does. That one reads by PaddleOCR; RapidOCR runs the models of PaddleOCR.
    """

    name = "ocr"
    needs = ("image",)
    pointwise = True

    @staticmethod
    def asks_with(key: str = "ocr_text", **options: Any) -> Ask:
        """What a prompt must have: a text to be read."""
        return partial(_expected, key=key)

    def __init__(
        self,
        engine: str = "rapidocr",
        *,
        match: str = "fuzzy",
        contained: bool = True,
        confidence: float = 0.5,
        threads: int = 1,
        key: str = "ocr_text",
    ):
        for label, value, choices in (("engine", engine, ENGINES), ("match", match, MATCHES)):
            require(label, value, value in choices, f"one of {list(choices)}")
        if not is_number(confidence) or not 0 <= confidence <= 1:
            raise ConfigError(f"`confidence` must be a number in [0, 1], got {confidence!r}; try 0.5.")
        require("threads", threads, is_whole(threads) and threads >= 1, "a whole number from 1 on")
        self.match, self.contained, self.key = match, bool(contained), key
        self.asks = self.asks_with(key)
        self._read = ENGINES[engine](float(confidence), threads)
        self._cannot_judge = PromptFaults(self.name)

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score the picture of every sample against the text that its prompt asks for.

        Raises:
            ContractError: If a sample has no picture `[3, H, W]`.
        """
        pictures = [picture_of(sample, self.name) for sample in samples]
        rows = [self._judged(picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]
        value, distance, found = torch.tensor(rows).T
        return Scores(value=value, parts={"distance": distance, "found": found})

    def _judged(self, picture: torch.Tensor, prompt: Prompt) -> tuple[float, float, float]:
        """The score, the distance and the number of characters read; NaN where nothing can be said."""
        try:
            expected = _expected(prompt, self.key)
        except ValueError as error:
            self._cannot_judge(prompt, str(error))
            return math.nan, math.nan, math.nan
        if not bool(picture.isfinite().all()):
            return math.nan, math.nan, math.nan
        found = _plain("".join(self._read(in_8_bits(picture).permute(1, 2, 0).contiguous().numpy())))
        there = self.contained and expected in found
        distance = 0 if there else edit_distance(found, expected)
        value = 1 - min(distance, len(expected)) / len(expected) if self.match == "fuzzy" else distance == 0
        return float(value), float(distance), float(len(found))


def _expected(prompt: Prompt, key: str) -> str:
    """The text that a picture must show, in its plain form.

    Raises:
        ValueError: If the prompt has none.
    """
    given, quoted = prompt.metadata.get(key), _QUOTED.search(prompt.text)
    if given is None and quoted is not None:
        given = quoted[quoted.lastindex or 0]
    expected = _plain(given) if isinstance(given, str) else ""
    if not expected:
        raise ValueError(f"it has neither a text `metadata[{key!r}]` nor one in double quotes")
    return expected


def edit_distance(first: str, second: str) -> int:
    """How many characters must be put in, taken out or replaced to make one text of the other.

    Reference:
        Levenshtein 1966; Wagner and Fischer 1974, by rows.
    """
    row = list(range(len(second) + 1))
    for i, sign in enumerate(first, start=1):
        above, row = row, [i]
        for j, other in enumerate(second, start=1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (sign != other)))
    return row[-1]


def _plain(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).lower().split())
