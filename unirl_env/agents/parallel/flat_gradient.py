"""The gradient where every learner holds all of it: one buffer, exchanged once in an optimizer step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unirl_env.agents.parallel.gradient import Gradient, l2_norm


class FlatGradient(Gradient):
    """Buffers that hold every gradient; the parameters' `.grad` are views into them.

    Gradients of micro-batches accumulate in place, and learners exchange one tensor per data type. Losses
    are divided by denominators that count all learners, so gradients are summed, never averaged.

    Args:
        parameters: The trained weights, in the same order on every learner.
        distributed: Whether there are other learners to exchange with.
        parts: Of how many parts, such as phases, the norm may be asked for: all but the first take the memory
            of one more gradient each.
        told: How many numbers learners tell each other with the gradient.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        *,
        distributed: bool = False,
        parts: int = 1,
        told: int = 0,
    ):
        self.parameters = list(parameters)
        self.distributed = distributed
        self._buffers: list[Tensor] = []
        self._sums: list[Tensor] = []
        """Of each buffer, the gradient; behind it, what it was at the end of each part but the last."""
        self._marks: list[Tensor] = []
        self._marked = 0
        homes: dict[tuple[torch.device, torch.dtype], list[nn.Parameter]] = {}
        for parameter in self.parameters:
            homes.setdefault((parameter.device, parameter.dtype), []).append(parameter)
        views: dict[int, Tensor] = {}
        for (device, dtype), members in homes.items():
            sizes = [member.numel() for member in members]
            # The last elements are what is told, and the number of learners that failed: news needs no
            # exchange of its own.
            buffer = torch.zeros(parts * sum(sizes) + told + 1, device=device, dtype=dtype)
            whole = buffer[: parts * sum(sizes)].view(parts, -1)
            for member, part in zip(members, whole[0].split(sizes), strict=True):
                views[id(member)] = part.view_as(member)
            self._buffers.append(buffer)
            self._sums.append(whole[0])
            self._marks.append(whole[1:])
        self._views = [views[id(parameter)] for parameter in self.parameters]
        self.told = self._buffers[0][-1 - told : -1]
        """Numbers `[told]`, which `zero` sets to 0 and `exchange` sums."""

    def zero(self) -> None:
        """Begin an optimizer step."""
        self._marked = 0
        for buffer in self._buffers:
            buffer.zero_()
        for parameter, view in zip(self.parameters, self._views, strict=True):
            parameter.grad = view

    def mark(self) -> None:
        """End a part of the gradient, after which another one is added."""
        for total, marks in zip(self._sums, self._marks, strict=True):
            marks[self._marked].copy_(total)
        self._marked += 1

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

    def part_norms(self) -> list[float]:
        """The L2 norm of each part of the exchanged gradient; once a step, and before it is clipped."""
        norms = []
        for number in range(self._marked + 1):
            found = []
            for total, marks in zip(self._sums, self._marks, strict=True):
                end = total if number == self._marked else marks[number]
                # The part before this one is known, and its place is free.
                own = marks[number - 1].neg_().add_(end) if number else end
                found.append(l2_norm(own))
            norms.append(torch.linalg.vector_norm(torch.stack(found)))
        return torch.stack(norms).tolist()

    def clip(self, max_norm: float) -> Tensor:
        """Scale the gradients so that their joint L2 norm is at most `max_norm`; returns the norm before."""
        norm: Tensor = torch.linalg.vector_norm(torch.stack([l2_norm(total) for total in self._sums]))
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for total in self._sums:
            total.mul_(scale.to(total.dtype))
        return norm
