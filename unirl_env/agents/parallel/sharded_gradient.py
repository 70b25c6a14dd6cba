"""The gradient where every learner holds a part of each weight: FSDP sums it in each backward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from unirl_env.agents.parallel.gradient import Gradient, l2_norm
from unirl_env.policies.parts import own_part


class ShardedGradient(Gradient):
    """The parts of gradients that a learner holds beside its parts of the weights.

    The backward pass of a micro-batch leaves here the sum over all learners. What is left to `exchange` is
    what they tell each other.

    Args:
        parameters: The trained weights, which are DTensors.
        parts: As in `FlatGradient`.
        told: How many numbers learners tell each other.
        sharers: How many learners read the same rows, and tell the same.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], *, parts: int = 1, told: int = 0, sharers: int = 1
    ):
        self.parameters, self._sharers = list(parameters), sharers
        self._copies = [_copies(parameter) for parameter in self.parameters]
        own = [own_part(parameter) for parameter in self.parameters]
        self._news = torch.zeros(told + 1, device=own[0].device)
        self.told = self._news[:told]
        self._marks = [[torch.zeros_like(part) for part in own] for _ in range(parts - 1)]
        self._marked = 0

    def zero(self) -> None:
        """Begin an optimizer step."""
        self._marked = 0
        self._news.zero_()
        for parameter in self.parameters:
            parameter.grad = None

    def mark(self) -> None:
        """End a part of the gradient, after which another one is added."""
        for kept, total in zip(self._marks[self._marked], self._own(), strict=True):
            kept.copy_(total)
        self._marked += 1

    def exchange(self, *, failed: bool = False) -> bool:
        """Sum what learners tell each other; a weight that nothing read has the gradient 0."""
        self._news[-1] = float(failed)
        dist.all_reduce(self._news, op=dist.ReduceOp.SUM)
        self._news /= self._sharers
        self._own()
        return bool(self._news[-1] > 0)

    def part_norms(self) -> list[float]:
        """The L2 norm of each part of the gradient; once a step, and before it is clipped."""
        ends = [*self._marks[: self._marked], self._own()]
        begins = [[torch.zeros_like(part) for part in ends[0]], *ends[:-1]]
        norms = [
            self._norm([after - before for before, after in zip(begin, end, strict=True)])
            for begin, end in zip(begins, ends, strict=True)
        ]
        return torch.stack(norms).tolist()

    def clip(self, max_norm: float) -> Tensor:
        """Scale the gradients so that their joint L2 norm is at most `max_norm`; returns the norm before."""
        own = self._own()
        norm = self._norm(own)
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for part in own:
            part.mul_(scale.to(part.dtype))
        return norm

    def _own(self) -> list[Tensor]:
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [own_part(parameter.grad) for parameter in self.parameters if parameter.grad is not None]

    def _norm(self, parts: Sequence[Tensor]) -> Tensor:
        squares = [
            l2_norm(part).square() / copies for part, copies in zip(parts, self._copies, strict=True)
        ]
        square = torch.stack(squares).sum()
        dist.all_reduce(square, op=dist.ReduceOp.SUM)
        return square.sqrt()


def _copies(weight: Tensor) -> int:
    """How many learners hold the same part of a weight."""
    assert isinstance(weight, DTensor)
    mesh = weight.device_mesh
    whole = [mesh.size(axis) for axis, lies in enumerate(weight.placements) if lies.is_replicate()]
    return math.prod(whole) * dist.get_world_size() // mesh.size()
