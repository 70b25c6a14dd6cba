"""Passes that nobody differentiates, without what torch does for those that somebody does."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

_BELOW = getattr(torch._C, "_AutoDispatchBelowAutograd", None)
"""The guard under which torch itself runs the kernels of custom operators; it has no public name."""


def forward_only() -> AbstractContextManager[object]:
    """Within it, where no gradient is recorded, operations go past autograd to their kernels.

    `torch.no_grad` still takes each operation through it, 1 to 3 % of a small network's time on a CPU. The
    kernels are the same, and so is every bit. Unlike those of `torch.inference_mode`, tensors made within are
    ordinary ones: what a network keeps of a pass, such as a table of positions, can be differentiated later.

    Where gradients are on, or a torch lacks the guard, nothing changes.
    """
    return nullcontext() if _BELOW is None or torch.is_grad_enabled() else _BELOW()
