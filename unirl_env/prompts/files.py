"""Reading prompt files: every reader returns raw entries and the place of each, for error messages.

`.txt` holds a prompt per line; empty lines and lines that begin with `#` are skipped. `.jsonl` holds a JSON
object per line; empty lines are skipped, and the paths of pictures start where the file is; a number that
no float holds (more than 17 digits, 1e400) is kept as the text that stands there. A directory holds a data
set written by `Dataset.save_to_disk`; its numbers of single precision are those of their shortest digits.
"""

from __future__ import annotations

import json
import os
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from unirl_env.errors import MissingExtra, PromptError
from unirl_env.media.files import require_regular

Entries = tuple[list[Any], list[str]]


def read_entries(source: str | os.PathLike[str], split: str | None = None) -> Entries:
    """The entries of a prompt file, a saved data set or a shipped set, and where each of them stands.

    Args:
        source: A path, or the name of a shipped set; an existing path wins over a set of the same name.
        split: The split of a data set that has several; by default `train`.

    Raises:
        PromptError: If nothing can be read from `source`.
        MissingExtra: If `source` is a data set and `datasets` is not installed.
    """
    path = _locate(source)
    if path.is_dir():
        return _read_dataset(path, split)
    if path.suffix.lower() == ".txt":
        return _read_text(path)
    if path.suffix.lower() == ".jsonl":
        return _read_jsonl(path)
    raise PromptError(
        f"A prompt file must end in .txt or .jsonl, got {path.name!r}; try one prompt per line in a .txt."
    )


def _locate(source: str | os.PathLike[str]) -> Path:
    if os.path.exists(source):
        return Path(source)
    shipped = Path(str(resources.files("unirl_env"))) / "prompts" / "sets"
    sets = {path.stem: path for path in sorted(shipped.glob("*.*")) if path.suffix in (".jsonl", ".txt")}
    if str(source) in sets:
        return sets[str(source)]
    names = sorted(sets)
    shown = repr(str(source)[:60])
    raise PromptError(
        f"`prompts` must be an existing file or directory, or one of the shipped sets {names}, "
        f"got {shown}; try [{shown}] if this is the prompt itself."
    )


def _lines(path: Path) -> list[tuple[str, str]]:
    """`(place, line)` of the lines that are not empty; a byte order mark is accepted."""
    try:
        require_regular(path)
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"A prompt file must be UTF-8, got a byte that is not at offset {error.start} of {path.name!r}; "
            f"try saving it as UTF-8."
        ) from error
    except OSError as error:
        raise PromptError(
            f"A prompt file must be readable, got {error.strerror} for {path.name!r}."
        ) from error
    return [(f"line {i}", line.strip()) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _read_text(path: Path) -> Entries:
    rows = [row for row in _lines(path) if not row[1].startswith("#")]
    return [line for _, line in rows], [place for place, _ in rows]


def _read_jsonl(path: Path) -> Entries:
    entries, places = [], []
    for place, line in _lines(path):
        try:
            entry = json.loads(line, parse_float=_number)
        except (ValueError, RecursionError) as error:
            raise PromptError(f"Every line of {path.name!r} must be JSON, got {error} ({place}).") from error
        if not isinstance(entry, dict):
            raise PromptError(
                f"Every line of {path.name!r} must be a JSON object, got {type(entry).__name__} ({place}); "
                f'try {{"prompt": "..."}}.'
            )
        entries.append(_beside(path, entry))
        places.append(place)
    return entries, places


def _number(written: str) -> float | str:
    """A number of the file; as its text if a float would be another one, so that no answer changes."""
    number = float(written)
    try:
        return number if Decimal(repr(number)) == Decimal(written) else written
    except ArithmeticError:  # an exponent that no decimal has
        return written


def _beside(path: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """`entry` with its pictures found from where its file lies."""

    def found(source: Any) -> Any:
        # What has a scheme is a data URI, or a remote picture that is refused with its own words.
        if not isinstance(source, str) or source.startswith("data:") or "://" in source:
            return source
        return str(path.parent.absolute() / source)

    if "image" in entry:
        entry = {**entry, "image": found(entry["image"])}
    if isinstance(entry.get("images"), list):
        entry = {**entry, "images": [found(source) for source in entry["images"]]}
    return entry


def _read_dataset(path: Path, split: str | None) -> Entries:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("datasets", "data") from error
    try:
        dataset = datasets.load_from_disk(str(path))
    except Exception as error:
        raise PromptError(
            f"A directory of prompts must hold a saved data set, got {type(error).__name__}: {error} for "
            f"{path.name!r}; try `Dataset.save_to_disk`."
        ) from error
    if isinstance(dataset, datasets.DatasetDict):
        wanted = split or "train"
        if wanted not in dataset:
            raise PromptError(f"`split` must be one of {sorted(dataset)}, got {wanted!r}; try `split=`.")
        dataset = dataset[wanted]
    narrow = [name for name, feature in dataset.features.items() if _is_narrow(feature)]
    rows = [{**row, **{name: _widened(row[name]) for name in narrow}} for row in dataset]
    return rows, [f"row {i}" for i in range(len(rows))]


def _is_narrow(feature: Any) -> bool:
    """Whether a column holds floats of single precision or less, by themselves or in lists."""
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) and feature else None)
    return _is_narrow(inner) if inner is not None else getattr(feature, "dtype", "") in ("float32", "float16")


def _widened(value: Any) -> Any:
    """0.1 in single precision is 0.10000000149011612 in double; its shortest digits are meant."""
    if isinstance(value, list):
        return [_widened(item) for item in value]
    return float(str(np.float32(value))) if isinstance(value, float) else value
