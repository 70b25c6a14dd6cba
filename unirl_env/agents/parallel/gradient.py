"""What a learner does with the gradient of an optimizer step, wherever it lies."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Gradient(ABC):
    """The gradient of the trained weights, summed over micro-batches and learners.

    Losses are divided by denominators that count all learners, so gradients are summed, never averaged. All
    learners call `exchange` and what follows it alike.

    Attributes:
        told: Numbers that learners tell each other with the gradient: `zero` sets them to 0, and `exchange`
            sums them.
    """

    told: Tensor

    @abstractmethod
    def zero(self) -> None:
        """Begin an optimizer step."""

    @abstractmethod
    def mark(self) -> None:
        """End a part of the gradient, after which another one is added."""

    @abstractmethod
    def exchange(self, *, failed: bool = False) -> bool:
        """Let the gradient be that of all learners; every learner must call this once per optimizer step.

        Args:
            failed: Whether this learner has no gradient to give.

        Returns:
            Whether any learner failed.
        """

    @abstractmethod
    def part_norms(self) -> list[float]:
        """The L2 norm of each part of the exchanged gradient; once a step, and before it is clipped."""

    @abstractmethod
    def clip(self, max_norm: float) -> Tensor:
        """Scale the gradients so that their joint L2 norm is at most `max_norm`; returns the norm before."""


def l2_norm(values: Tensor) -> Tensor:
    """The L2 norm in float32, summed in no less."""
    wide = torch.promote_types(values.dtype, torch.float32)
    return torch.linalg.vector_norm(values, dtype=wide).float()
