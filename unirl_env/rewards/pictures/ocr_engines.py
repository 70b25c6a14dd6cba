"""Programs that read the text of a picture."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from typing import Any

import numpy as np

from unirl_env.errors import ConfigError, MissingExtra, ScorerError

__all__ = ["ENGINES", "RapidEngine", "TesseractEngine"]

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
