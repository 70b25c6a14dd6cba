"""The gradients of all trained weights as one buffer: one exchange between learners per optimizer step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["FlatGradient"]


class FlatGradient:
    """Buffers that hold every gradient; the parameters' `.grad` are views into them.

    Gradients of micro-batches accumulate in place, and learners exchange one tensor per data type. Losses
    are divided by denominators that count all learners, so gradients are summed, never averaged.

    Args:
        parameters: The trained weights, in the same order on every learner.
        distributed: Whether there are other learners to exchange with.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, distributed: bool = False):
        self.parameters = list(parameters)
        self.distributed = distributed
        self._views: list[Tensor] = []
        self._buffers: list[Tensor] = []
        homes: dict[tuple[torch.device, torch.dtype], list[nn.Parameter]] = {}
        for parameter in self.parameters:
            homes.setdefault((parameter.device, parameter.dtype), []).append(parameter)
        views: dict[int, Tensor] = {}
        for (device, dtype), members in homes.items():
            sizes = [member.numel() for member in members]
            # The last element counts the learners that failed: news of it needs no exchange of its own.
            buffer = torch.zeros(sum(sizes) + 1, device=device, dtype=dtype)
            for member, part in zip(members, buffer[:-1].split(sizes), strict=True):
                views[id(member)] = part.view_as(member)
            self._buffers.append(buffer)
        self._views = [views[id(parameter)] for parameter in self.parameters]

    def zero(self) -> None:
        """Begin an optimizer step."""
        for buffer in self._buffers:
            buffer.zero_()
        for parameter, view in zip(self.parameters, self._views, strict=True):
            parameter.grad = view

    def exchange(self, *, failed: bool = False) -> bool:
        """Sum the gradients over all learners; every learner must call this once per optimizer step.

        Args:
            failed: Whether this learner has no gradient to give. It takes part all the same: a learner that
                stayed away would keep the others waiting for ever.

        Returns:
            Whether any learner failed.
        """
        if not self.distributed:
            return failed
        if failed:
            for buffer in self._buffers:
                buffer.zero_()
        self._buffers[0][-1] = float(failed)
        for buffer in self._buffers:
            dist.all_reduce(buffer, op=dist.ReduceOp.SUM)
        return bool(self._buffers[0][-1] > 0)

    def clip(self, max_norm: float) -> Tensor:
        """Scale the gradients so that their joint L2 norm is at most `max_norm`; returns the norm before."""
        for buffer in self._buffers:
            buffer[-1] = 0.0
        norm = torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(buffer, dtype=torch.float32) for buffer in self._buffers])
        )
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for buffer in self._buffers:
            buffer.mul_(scale.to(buffer.dtype))
        return norm
