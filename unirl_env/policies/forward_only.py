"""Passes that nobody differentiates, without what torch keeps for those that somebody does."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

_BELOW = getattr(torch._C, "_AutoDispatchBelowADInplaceOrView", None)
"""Torch's own guard, by which its compiled graphs run; torch gives it no public name."""


def forward_only() -> AbstractContextManager[object]:
    """Within it, where no gradient is recorded, operations go past autograd and past its tracking of views.

    `torch.no_grad` still takes each operation through both, 2 to 4 % of a small network's time on a CPU. The
    kernels are the same, and so is every bit. Unlike those of `torch.inference_mode`, tensors made within are
    ordinary ones: what a network keeps of a pass, such as a table of positions, can be differentiated later.

    Where gradients are on, or a torch lacks the guard, nothing changes.
    """
    return nullcontext() if _BELOW is None or torch.is_grad_enabled() else _BELOW()
