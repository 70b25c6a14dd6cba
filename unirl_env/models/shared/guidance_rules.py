"""Rules of classifier-free guidance that pipelines of diffusers follow; 1 is none in all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Rule = Callable[[Tensor, Tensor, float], Tensor]


def plain(without: Tensor, with_prompt: Tensor, guidance: float | Tensor) -> Tensor:
    """`u + g (c - u)`; `g` may be one number, or what goes with the velocities."""
    return without + guidance * (with_prompt - without)


def renormed(without: Tensor, with_prompt: Tensor, guidance: float, most: float = float("inf")) -> Tensor:
    """`u + g (c - u)`, scaled along the last axis to the norm of `c`, at most `most` times."""
    there = plain(without, with_prompt, guidance)
    norm, own = (each.norm(dim=-1, keepdim=True) for each in (there, with_prompt))
    return there * (own / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp(max=most)


def shrunk(without: Tensor, with_prompt: Tensor, guidance: float) -> Tensor:
    """`u + g (c - u)`, shrunk along the last axis to the norm of `c` where it is longer."""
    return renormed(without, with_prompt, guidance, 1.0)


RULES: Mapping[str, Rule] = {
    "u + g (c - u)": plain,
    "u + g (c - u) with the norm of c along the last axis": renormed,
    "u + g (c - u) with at most the norm of c along the last axis": shrunk,
}
