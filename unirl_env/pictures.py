"""Samples on the disk: PNG files named `<prompt>-<sample>.png`, latents where a model has no pictures."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from unirl_env.types import Sample

__all__ = ["load_latents", "picture_paths", "save_samples", "thin_out"]

LATENTS = "latents.safetensors"


def save_samples(folder: Path, samples: Sequence[Sample], per_prompt: int) -> None:
    """Write the samples, `per_prompt` in a row for each prompt; what lay in `folder` is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    latents = []
    for i, sample in enumerate(samples):
        prompt, number = divmod(i, per_prompt)
        if sample.image is not None:
            pixels = (sample.image.detach().cpu().float().nan_to_num().clamp(0, 1) * 255).round()
            picture = Image.fromarray(pixels.to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
            picture.save(folder / f"{prompt:03d}-{number}.png")
        elif sample.latent is not None:
            latents.append(sample.latent.detach().cpu().float())
    if latents:
        save_file({"latents": torch.stack(latents)}, folder / LATENTS)


def picture_paths(folder: Path) -> dict[tuple[int, int], Path]:
    """The pictures in `folder` by (prompt, sample)."""
    found = {}
    for path in sorted(folder.glob("*-*.png")):
        prompt, _, number = path.stem.partition("-")
        found[int(prompt), int(number)] = path
    return found


def load_latents(folder: Path) -> torch.Tensor | None:
    """The latents `[B, ...]` in `folder`, or None."""
    path = folder / LATENTS
    return load_file(path)["latents"] if path.exists() else None


def thin_out(pictures: Path, name: str, keep: Sequence[int]) -> None:
    """Of the evaluations that are not in `keep`, leave the first sample of each prompt: enough for a film."""
    for folder in pictures.glob(f"[0-9]*/{name}"):
        if int(folder.parent.name) not in keep:
            for (_, number), path in picture_paths(folder).items():
                if number > 0:
                    path.unlink()
