"""The pictures of a report: the same prompts and seeds, before and after."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from unirl_env.run.record.samples import load_latents, picture_paths, question_pictures

__all__ = ["data_uri", "film", "gallery", "scatter", "seen", "shown"]

LARGEST = 320
"""Side in pixels from which pictures are scaled down: a page must stay one that can be sent."""
PIXELATED = 128


def gallery(
    columns: Mapping[str, tuple[Path, Mapping[str, Any]]], reward: str = "reward", most: int = 8
) -> str:
    """A card for each prompt with a row of pictures for each state of the policy.

    Args:
        columns: `label -> (folder of pictures, row of evaluation.jsonl)`, in the order of the rows of a card.
        reward: The reward that is written under each picture.
        most: Cards at most; always the first ones, so that nobody has picked.
    """
    label, (_, first) = next(iter(columns.items()))
    found = {name: picture_paths(folder) for name, (folder, _) in columns.items()}
    if not found[label]:
        return ""
    samples, cards = first["samples"], []
    for prompt, text in enumerate(first["prompts"][:most]):
        strips = []
        for name, (_, row) in columns.items():
            values = row["values"][reward]
            cells = "".join(
                _cell(found[name].get((prompt, n)), _score(values[prompt * samples + n]))
                for n in range(samples)
            )
            scores = [values[prompt * samples + n] for n in range(samples)]
            strips.append(
                f'<div class="strip {html.escape(name)}"><div class="label">{html.escape(name)}'
                f"<b>{_mean(scores)}</b></div>"
                f'<div class="cells" style="--n:{min(samples, 8)}">{cells}</div></div>'
            )
        cards.append(
            f'<article class="card prompt"><p class="text">{html.escape(_short(text))}</p>'
            f"{seen(question_pictures(columns[label][0], prompt))}{''.join(strips)}</article>"
        )
    return f'<div class="gallery">{"".join(cards)}</div>'


def film(
    pictures: Path,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    most: int = 6,
    show: Callable[[Path, int, str], str] | None = None,
) -> str:
    """One picture per prompt and evaluation: how the same seed changed over the run.

    Args:
        pictures: The folder of all evaluations.
        name: The prompt set.
        rows: Its rows of evaluation.jsonl.
        most: Prompts at most.
        show: What stands in each place as HTML, by folder, prompt and reward; by default the picture.
    """
    chosen = _spread(list(rows), 10)
    frames = [(row, pictures / f"{row['iteration']:06d}" / name) for row in chosen]
    if len(frames) < 3 or not any(picture_paths(folder) for _, folder in frames):
        return ""
    head = "".join(f"<th>{row['iteration']}</th>" for row, _ in frames)
    show, lines = show or _first, []
    for prompt, text in enumerate(chosen[0]["prompts"][:most]):
        scores = [_score(row["values"]["reward"][prompt * row["samples"]]) for row, _ in frames]
        cells = "".join(
            f"<td>{show(folder, prompt, score)}</td>"
            for (_, folder), score in zip(frames, scores, strict=True)
        )
        lines.append(f'<tr><th class="text">{html.escape(_short(text, 60))}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table class="film"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def scatter(before: Path, after: Path, size: int = 360) -> str:
    """Latents of two numbers as two clouds of points, for models that draw no pictures."""
    clouds = {"before": load_latents(before), "after": load_latents(after)}
    points = {k: v.flatten(1) for k, v in clouds.items() if v is not None and v[0].numel() == 2}
    if len(points) < 2:
        return ""
    reach = max(float(cloud.abs().max()) for cloud in points.values()) * 1.1 or 1.0
    marks = "".join(
        f'<circle class="{name}" r="3.2" cx="{size / 2 * (1 + x / reach):.1f}" '
        f'cy="{size / 2 * (1 - y / reach):.1f}"/>'
        for name, cloud in points.items()
        for x, y in cloud.tolist()
    )
    return (
        f'<figure class="chart scatter"><figcaption><h3>Samples</h3><div class="legend">'
        f'<span class="key second">before</span><span class="key main">after</span></div></figcaption>'
        f'<svg viewBox="0 0 {size} {size}"><line class="grid" x1="0" x2="{size}" y1="{size / 2}" '
        f'y2="{size / 2}"/><line class="grid" y1="0" y2="{size}" x1="{size / 2}" x2="{size / 2}"/>'
        f"{marks}</svg></figure>"
    )


def seen(pictures: Sequence[Path]) -> str:
    """The pictures that belong to a request, or nothing."""
    return f'<div class="seen">{"".join(map(shown, pictures))}</div>' if pictures else ""


def shown(path: Path, largest: int = LARGEST) -> str:
    """A picture as HTML, scaled down from `largest` pixels a side on."""
    uri, small = data_uri(path, largest)
    kind = ' class="pixels"' if small else ""
    return f'<img{kind} src="{uri}" alt="" loading="lazy">'


def data_uri(path: Path, largest: int = LARGEST) -> tuple[str, bool]:
    """A picture as text that fits into a page, and whether it is so small that its pixels should show."""
    with Image.open(path) as picture:
        small = max(picture.size) <= PIXELATED
        stream = io.BytesIO()
        if small:
            picture.save(stream, "PNG", optimize=True)
        else:
            picture.thumbnail((largest, largest), Image.Resampling.LANCZOS)
            picture.convert("RGB").save(stream, "JPEG", quality=85)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}", small


def _first(folder: Path, prompt: int, score: str) -> str:
    return _cell(picture_paths(folder).get((prompt, 0)), score)


def _score(value: float | None) -> str:
    return "failed" if value is None else f"{value:.2f}"


def _cell(path: Path | None, score: str) -> str:
    if path is None:
        return f'<div class="cell missing"><span>{score}</span></div>'
    return f'<div class="cell">{shown(path)}<span>{score}</span></div>'


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.2f}" if known else "-"


def _short(text: str, most: int = 160) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _spread(rows: list, most: int) -> list:
    """At most `most` of the rows, evenly spread, with both ends."""
    if len(rows) <= most:
        return rows
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]
