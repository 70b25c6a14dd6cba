"""The gradient where every learner holds a part of each weight: FSDP sums it in each backward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from unirl_env.agents.parallel.gradient import Gradient, l2_norm
from unirl_env.errors import ContractError
from unirl_env.policies.parts import own_part

ALIKE = 1e-3
"""By how much the norms of one gradient may differ that several learners have found, by rounding."""


class ShardedGradient(Gradient):
    """The parts of gradients that a learner holds beside its parts of the weights.

    The backward pass of a micro-batch leaves here the sum over all learners. What is left to `exchange` is
    what they tell each other.

    Args:
        parameters: The trained weights, which are DTensors.
        parts: As in `FlatGradient`.
        told: How many numbers learners tell each other.
        sharers: How many learners read the same rows, and tell the same.
        alike: Whether they share matrices, and find the same gradient of what each has whole.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        *,
        parts: int = 1,
        told: int = 0,
        sharers: int = 1,
        alike: bool = False,
    ):
        self.parameters, self._sharers = list(parameters), sharers
        self._copies = [_copies(parameter) for parameter in self.parameters]
        self._to_be_held = alike
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
        if self._to_be_held:
            self._require_same()
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

    def _require_same(self) -> None:
        """Hold the first gradients against each other: of a whole tensor, sharers have the same.

        One that is other is a part of a sum of which the network's plan does not tell.

        Raises:
            ContractError: Naming the shape of the weight.
        """
        self._to_be_held = False
        axis = 1  # of those that share matrices
        whole = [p for p in self.parameters if isinstance(p, DTensor) and p.placements[axis].is_replicate()]
        if not whole:
            return
        norms = torch.stack([l2_norm(own_part(p.grad)) for p in whole if p.grad is not None])
        found = torch.cat([norms, -norms])
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=whole[0].device_mesh.get_group(axis))
        most, least = found[: len(whole)], -found[len(whole) :]
        if bool((far := most - least > ALIKE * most).any()):
            number = int(far.nonzero()[0])
            raise ContractError(
                f"Learners that share matrices (`learner.tensor_parallel` {self._sharers}) must find the "
                f"same gradient of what each has whole, got norms from {float(least[number]):.3g} to "
                f"{float(most[number]):.3g} of a weight of shape {list(whole[number].shape)}; try "
                "learner.tensor_parallel=1."
            )

    def _norm(self, parts: Sequence[Tensor]) -> Tensor:
        squares = [l2_norm(part).square() / copies for part, copies in zip(parts, self._copies, strict=True)]
        square = torch.stack(squares).sum()
        dist.all_reduce(square, op=dist.ReduceOp.SUM)
        return square.sqrt()


def _copies(weight: Tensor) -> int:
    """How many learners hold the same part of a weight."""
    assert isinstance(weight, DTensor)
    mesh = weight.device_mesh
    whole = [mesh.size(axis) for axis, lies in enumerate(weight.placements) if lies.is_replicate()]
    return math.prod(whole) * dist.get_world_size() // mesh.size()
