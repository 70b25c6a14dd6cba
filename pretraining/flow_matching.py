"""What pre-training of the embedded flow models shares: the fit to captioned latents, and files in half."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

__all__ = ["fit_flow", "save_half", "steps_of"]


class Captioned(Protocol):
    """A caption of any world."""

    @property
    def text(self) -> str:
        """What it says."""


def steps_of(count: int, label: str) -> Iterable[int]:
    """The numbers of `count` steps, with a progress bar."""
    from rich.progress import track

    return track(range(count), description=label)


def fit_flow(
    networks: nn.ModuleList,
    latents: Tensor,
    captions: Sequence[Captioned],
    known: Sequence[str],
    velocity: Callable[[Tensor, Tensor, list[int]], Tensor],
    *,
    steps: int,
    rng: np.random.Generator,
    loosen: Callable[[Any, float, np.random.Generator], Captioned],
    loose_rate: float,
    batch: int,
    peak_lr: float,
) -> None:
    """Flow matching of networks on latents; they end as the average of the last steps.

    Args:
        networks: What learns.
        latents: Scaled, `[N, ...]`.
        captions: The N captions.
        known: All texts that may be said, the first one empty.
        velocity: From noisy latents, noise levels `[n]` and places in `known` to predictions.
        steps: Optimizer steps.
        rng: Source of everything random.
        loosen: Replaces attributes of a caption with some probability.
        loose_rate: That probability.
        batch: Latents per step.
        peak_lr: Learning rate after warm-up; it falls linearly to a twentieth.
    """
    row = {text: index for index, text in enumerate(known)}
    networks.train()
    average = copy.deepcopy(networks)
    optimizer = torch.optim.AdamW(networks.parameters(), lr=peak_lr, betas=(0.9, 0.98), weight_decay=1e-3)
    for step in steps_of(steps, f"flow matching, {loose_rate:.0%} loose"):
        for group in optimizer.param_groups:
            group["lr"] = peak_lr * min((step + 1) / 50, 1 - 0.95 * step / steps)
        picked = rng.integers(len(latents), size=batch)
        rows = []
        for caption in (captions[index] for index in picked):
            said = loosen(caption, loose_rate, rng) if loose_rate else caption
            # What is held out is never said. One text in ten is dropped: guidance needs a model without.
            rows.append(row.get(said.text, row[caption.text]) if rng.random() > 0.1 else 0)
        clean = latents[picked]
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
        uniform = torch.from_numpy(rng.random(batch, dtype=np.float32))
        sigma = 3 * uniform / (1 + 2 * uniform)  # the scheduler's shift
        noisy = clean + sigma.view(-1, *(1,) * (clean.ndim - 1)) * (noise - clean)
        loss = nnf.mse_loss(velocity(noisy, sigma, rows), noise - clean)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            decay = min(0.98, step / (step + 10))
            torch._foreach_lerp_(list(average.parameters()), list(networks.parameters()), 1 - decay)
    networks.load_state_dict(average.state_dict())
    networks.eval()


def save_half(pipe: Any, directory: str | Path, encoders: Sequence[str]) -> Path:
    """Write a pipeline in float16; it keeps that precision, in float32 storage.

    Args:
        pipe: Of diffusers.
        directory: Where to.
        encoders: The folders of its text encoders.
    """
    directory = Path(directory)
    pipe.to(torch.float16).save_pretrained(directory)
    pipe.to(torch.float32)
    # Encoders would come back in the precision of the file, everything else in float32; the pipeline then
    # mixes the two. The file stays half precision, the loaded model does not.
    for name in encoders:
        path = directory / name / "config.json"
        config = json.loads(path.read_text())
        config["dtype"] = "float32"
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return directory
