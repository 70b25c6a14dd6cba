"""Samples on the disk, for people and for the report.

<prompt>-<sample>.png   pictures                latents.safetensors   of models without pictures
texts.json              every answer in words   prompts.json          what was asked, with texts only
prompts/<prompt>-<n>.png                        the pictures that belong to a question
further/<prompt>-<sample>-<k>.png               where several were drawn from one text, those after the first
<prompt>-<sample>.webp  clips, animated         <prompt>-<sample>.mp4   the same as movies, where asked for

Files of other names are a person's: they are neither read nor removed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from unirl_env.media.frames import clip_frames, write_mp4, write_webp
from unirl_env.media.pixels import load_picture
from unirl_env.run.record.files import is_dangling, numbered, remove_files, replace_text
from unirl_env.types import Prompt, Sample

LATENTS, TEXTS, QUESTIONS, ASKED = "latents.safetensors", "texts.json", "prompts.json", "prompts"
FURTHER = "further"
PLACE = "([0-9]{3,9})-([0-9]{1,9})"
PICTURE, CLIP, SHOWN = rf"{PLACE}\.png", rf"{PLACE}\.webp", rf"{PLACE}\.(?:png|webp|mp4)"
FURTHER_PICTURE = rf"{PLACE}-([0-9]{{1,9}})\.png"
FILES = "|".join([SHOWN, *(rf"\.?{re.escape(name)}" for name in (LATENTS, TEXTS, QUESTIONS))])
"""What the files are called."""
MOST_FURTHER = 7
"""Pictures of one text that are kept besides the first."""
FPS = 8
"""Frames per second of clips of which nobody says it."""
LARGEST = 1024
"""Side in pixels from which a question's picture is scaled down: it is a copy of one that lies elsewhere."""


def save_samples(
    folder: Path,
    samples: Sequence[Sample],
    per_prompt: int,
    prompts: Sequence[Prompt] = (),
    fps: float = FPS,
    movies: bool = False,
) -> None:
    """Write the samples; those that lay in `folder` are replaced.

    Args:
        folder: Where they go.
        samples: P x `per_prompt` samples, those of a prompt in a row.
        per_prompt: Samples of each prompt.
        prompts: The P prompts. With them, the questions of texts and all their pictures are written, too.
        fps: Frames per second of clips.
        movies: Write clips as movies, too.

    Raises:
        MissingExtra: If there are movies to be written, and moviepy is not installed.
    """
    _clear(folder)
    latents: dict[str, Tensor] = {}
    texts = []
    for i, sample in enumerate(samples):
        prompt, number = divmod(i, per_prompt)
        _save_drawn(sample, folder, f"{prompt:03d}-{number}", fps, movies)
        if sample.latent is not None and sample.image is None and sample.video is None:
            latents[f"{prompt:03d}-{number}"] = sample.latent.detach().cpu().float().contiguous()
        if sample.text is not None:
            texts.append(_text_row(prompt, number, sample))
    if latents:
        alike = len({latent.shape for latent in latents.values()}) == 1
        save_file({"latents": torch.stack([*latents.values()])} if alike else latents, folder / LATENTS)
    if texts:
        _write(folder / TEXTS, texts)
        if prompts:
            _write(folder / QUESTIONS, [_question_row(i, prompt) for i, prompt in enumerate(prompts)])
    for i, prompt in enumerate(prompts):
        for number, source in enumerate(prompt.images):
            (folder / ASKED).mkdir(exist_ok=True)
            _save_picture(load_picture(source), folder / ASKED / f"{i:03d}-{number}.png", LARGEST)


def picture_paths(folder: Path) -> dict[tuple[int, int], Path]:
    """The pictures in `folder` by (prompt, sample)."""
    return {(prompt, number): path for (prompt, number), path in _named(folder, PICTURE)}


def clip_paths(folder: Path) -> dict[tuple[int, int], Path]:
    """The clips in `folder` by (prompt, sample)."""
    return {(prompt, number): path for (prompt, number), path in _named(folder, CLIP)}


def drawn_paths(folder: Path) -> dict[tuple[int, int], Path]:
    """What was drawn in `folder` by (prompt, sample): pictures, and clips where there are such."""
    return picture_paths(folder) | clip_paths(folder)


def further_pictures(folder: Path) -> dict[tuple[int, int], list[Path]]:
    """By (prompt, sample), the pictures that were drawn from one text besides the first, in their order."""
    found: dict[tuple[int, int], list[Path]] = {}
    for (prompt, number, _), path in _named(folder / FURTHER, FURTHER_PICTURE):
        found.setdefault((prompt, number), []).append(path)
    return found


def question_pictures(folder: Path, prompt: int) -> list[Path]:
    """The pictures that belong to the question of a prompt, in their order."""
    found = picture_paths(folder / ASKED)
    return [found[key] for key in sorted(found) if key[0] == prompt]


def load_texts(folder: Path) -> dict[tuple[int, int], Mapping[str, Any]]:
    """The texts in `folder` by (prompt, sample), each with `text`, `tokens` (or None) and `truncated`."""
    return {(row["prompt"], row["sample"]): row for row in _read(folder / TEXTS)}


def load_questions(folder: Path) -> dict[int, Mapping[str, Any]]:
    """What was asked, by prompt: `text` and the expected `answer` (or None)."""
    return {row["prompt"]: row for row in _read(folder / QUESTIONS)}


def load_latents(folder: Path) -> Tensor | None:
    """The latents `[B, ...]` in `folder`; None of none, or of several shapes, which lie there one by one."""
    path = folder / LATENTS
    return load_file(path).get("latents") if path.exists() else None


def thin_out(pictures: Path, name: str, keep: Sequence[int]) -> None:
    """Of the evaluations that are not in `keep`, leave the first sample of each prompt: enough for a film."""
    for iteration, place in numbered(pictures):
        folder = place / name
        if iteration not in keep and folder.is_dir():
            for (_, number), path in _named(folder, SHOWN):
                if number > 0:
                    path.unlink()
            texts = load_texts(folder)
            if any(number for _, number in texts):
                _write(folder / TEXTS, [row for (_, number), row in texts.items() if number == 0])
            remove_files(folder / FURTHER, FURTHER_PICTURE)
            # The evaluations that stay have the same questions.
            remove_files(folder / ASKED, PICTURE)
            (folder / QUESTIONS).unlink(missing_ok=True)


def _clear(folder: Path) -> None:
    """Make the folder, without the samples of an earlier time."""
    if folder.is_dir():
        remove_files(folder.resolve(), FILES, inner=[(FURTHER, FURTHER_PICTURE), (ASKED, PICTURE)])
    elif is_dangling(folder):
        folder.unlink()
    folder.mkdir(parents=True, exist_ok=True)


def _named(folder: Path, pattern: str) -> list[tuple[tuple[int, ...], Path]]:
    """The files of `folder` whose whole names match, by the numbers in them."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if (match := re.fullmatch(pattern, path.name)) and path.is_file():
            found.append((tuple(map(int, match.groups())), path))
    return sorted(found)


def _save_picture(image: Tensor, path: Path, largest: int | None = None) -> None:
    pixels = (image.detach().cpu().float().nan_to_num().clamp(0, 1) * 255).round()
    picture = Image.fromarray(pixels.to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
    if largest is not None:
        picture.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    picture.save(path)


def _save_drawn(sample: Sample, folder: Path, name: str, fps: float, movies: bool) -> None:
    if sample.image is not None:
        _save_picture(sample.image, folder / f"{name}.png")
    if sample.video is not None:
        frames = clip_frames(sample.video)
        write_webp(folder / f"{name}.webp", frames, fps)
        if movies:
            write_mp4(folder / f"{name}.mp4", frames, fps)
    if sample.pictures is not None:
        for k, picture in enumerate(sample.pictures[1 : 1 + MOST_FURTHER], start=1):
            (folder / FURTHER).mkdir(exist_ok=True)
            _save_picture(picture, folder / FURTHER / f"{name}-{k}.png")


def _text_row(prompt: int, number: int, sample: Sample) -> dict[str, Any]:
    count = None if sample.tokens is None else len(sample.tokens)
    return {
        "prompt": prompt,
        "sample": number,
        "text": sample.text,
        "tokens": count,
        "truncated": bool(sample.truncated),
    }


def _question_row(i: int, prompt: Prompt) -> dict[str, Any]:
    answer = prompt.metadata.get("answer")
    return {"prompt": i, "text": prompt.text, "answer": None if answer is None else _in_words(answer)}


def _in_words(answer: Any) -> str:
    return " or ".join(map(str, answer)) if isinstance(answer, list | tuple) else str(answer)


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    # In ASCII, because a text of a model may hold what no encoding of a file can.
    replace_text(path, json.dumps(rows, indent=1))


def _read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="ascii")) if path.exists() else []
