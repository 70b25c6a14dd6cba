"""Whether the text that was asked for can be read in the picture, by one of the programs that read."""

from __future__ import annotations

import io
import math
import os
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from unirl_env.arguments.values import is_number, is_whole, require
from unirl_env.errors import ConfigError, MissingExtra, ScorerError
from unirl_env.media.pixels import in_8_bits
from unirl_env.rewards.asks import Ask
from unirl_env.rewards.inputs import picture_of
from unirl_env.rewards.scoring import PromptFaults
from unirl_env.types import Prompt, Sample, Scores

TESSERACT_SECONDS = 60.0
MOST_ASPECT, MOST_PIXELS = 4, 2000


class RapidEngine:
    """PP-OCRv4 by RapidOCR on the CPU; its models come with the package (`rapidocr-onnxruntime`, Apache-2.0).

    It reads Latin and Chinese script. A picture is read by itself, at a fixed number of threads, so that the
    same picture gives the same text in any company.

    Args:
        confidence: The least confidence of a line, in [0, 1], that counts as read.
        threads: Of every network; more than there are cores count as the cores.

    Raises:
        MissingExtra: If RapidOCR is not installed.
    """

    def __init__(self, confidence: float = 0.5, threads: int = 1):
        try:
            from rapidocr_onnxruntime import RapidOCR
        except ImportError as error:
            raise MissingExtra("rapidocr-onnxruntime", "ocr") from error
        self.confidence, self.threads = confidence, threads
        # More threads than cores would be taken for "as many as you like".
        count = min(threads, os.cpu_count() or 1)
        self._engine = RapidOCR(
            use_cls=False, text_score=confidence, intra_op_num_threads=count, inter_op_num_threads=1
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return RapidEngine, (self.confidence, self.threads)

    def __call__(self, picture: np.ndarray) -> list[str]:
        """The lines of `picture` `[H, W, 3]` uint8, from the top."""
        # Blue first, as OpenCV has it.
        found, _ = self._engine(np.ascontiguousarray(_stout(picture)[..., ::-1]))
        return [line[1] for line in found or ()]


class TesseractEngine:
    """The program Tesseract, which must be installed on the machine; one process a picture.

    Args:
        confidence: The least confidence of a word, in [0, 1], that counts as read.
        threads: Not used; `OMP_THREAD_LIMIT` in the environment limits those of Tesseract.
        language: Tesseract's name of the language.

    Raises:
        ConfigError: If the program is not there.
    """

    def __init__(self, confidence: float = 0.5, threads: int = 1, language: str = "eng"):
        program = shutil.which("tesseract")
        if program is None:
            raise ConfigError(
                "`engine: tesseract` must find the program `tesseract` on the PATH, got none; try to install "
                "it (`apt-get install tesseract-ocr`), or engine 'rapidocr'."
            )
        self.confidence, self.language = confidence, language
        self._command = [program, "stdin", "stdout", "-l", language, "--psm", "11", "tsv"]

    def __call__(self, picture: np.ndarray) -> list[str]:
        """The words of `picture` `[H, W, 3]` uint8.

        Raises:
            ScorerError: If the program fails, or takes longer than a minute.
        """
        from PIL import Image

        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "PNG")
        try:
            done = subprocess.run(
                self._command, input=stream.getvalue(), capture_output=True, timeout=TESSERACT_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ScorerError(
                f"`tesseract` must read a picture in {TESSERACT_SECONDS} s, got {error}."
            ) from error
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()[-200:]
            raise ScorerError(f"`tesseract` must read a picture, got exit status {done.returncode}: {said}")
        return self._words(done.stdout.decode(errors="replace"))

    def _words(self, table: str) -> list[str]:
        """The sure words of Tesseract's table, whose last two columns are the confidence and the word."""
        rows = [line.split("\t") for line in table.splitlines()[1:]]
        return [row[11] for row in rows if len(row) >= 12 and float(row[10]) >= 100 * self.confidence]


def _stout(picture: np.ndarray) -> np.ndarray:
    """`picture`, its edges repeated until its longer side is at most `MOST_ASPECT` times the shorter one.

    RapidOCR enlarges the shorter side to hundreds of pixels: one of 1 x 2000 would take all memory there is.
    """
    from PIL import Image

    height, width = picture.shape[:2]
    if max(height, width) <= MOST_ASPECT * min(height, width):
        return picture
    if (factor := MOST_PIXELS / max(height, width)) < 1:  # RapidOCR would shrink it to this anyway
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
    least = -(-max(picture.shape[:2]) // MOST_ASPECT)
    gaps = [max(0, least - side) for side in picture.shape[:2]]
    return np.pad(picture, [(gap // 2, gap - gap // 2) for gap in gaps] + [(0, 0)], mode="edge")


ENGINES = {"rapidocr": RapidEngine, "tesseract": TesseractEngine}
"""By their names in configurations."""


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
