"""Decoders that draw random numbers: the same for every sample, which then never changes with its company."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SEED = 0


def same_noise(latents: Tensor) -> Tensor:
    """Standard normal `[1, ...]` like a row of `latents`, the same whenever it is asked for."""
    drawn = torch.randn(1, *latents.shape[1:], generator=torch.Generator().manual_seed(SEED))
    return drawn.to(latents)


def decoded_alike(vae: Any, latents: Tensor, *more: Any) -> Tensor:
    """Latents `[n, ...]` decoded one by one, each with the same random numbers of torch's own stream.

    Args:
        vae: Whose `decode` is called.
        latents: On its device, in its dtype.
        *more: What else `decode` is given.
    """
    device, clips = latents.device, []
    for one in latents.split(1):
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(SEED)
            clips.append(vae.decode(one, *more, return_dict=False)[0])
    return torch.cat(clips)
