"""Log-probabilities of tokens from hidden states, a chunk of rows at a time, forward and backward."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.autograd.function import once_differentiable

from unirl_env.functional.vocabulary import Cells, cells, entropy, lowest_kept, token_log_prob

__all__ = ["ChunkedScores", "Chunking"]


class Chunking(NamedTuple):
    """The settings of `ChunkedScores`.

    Attributes:
        temperature: Positive.
        top_p: As in `token_step`.
        top_k: As in `token_step`.
        rows: Rows per chunk.
        train_hidden: Whether the hidden states want a gradient.
        train_weight: Whether the output layer wants one.
    """

    temperature: float
    top_p: float
    top_k: int
    rows: int
    train_hidden: bool
    train_weight: bool

    def cuts(self, count: int) -> list[slice]:
        """The chunks of `count` rows."""
        return [slice(start, start + self.rows) for start in range(0, count, self.rows)]

    @property
    def slopes_are_kept(self) -> bool:
        """Whether backward scales the slopes `[N, D]` that forward found, and computes nothing again.

        The slope of a row's log-probability does not depend on the gradient that arrives, which only scales
        it. The gradient of the output layer is a sum over rows, where this helps nothing.
        """
        return self.train_hidden and not self.train_weight


class ChunkedScores(torch.autograd.Function):
    """`(hidden [N, D], weight [V, D], token [N], Chunking) -> (log_prob [N], entropy [N])`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, token: Tensor, chunking: Chunking
    ) -> tuple[Tensor, Tensor]:
        """Score; keep the slopes, or the inputs."""
        head = weight.to(hidden.dtype)
        log_prob = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
        entropies = torch.empty_like(log_prob)
        slopes = torch.empty_like(hidden) if chunking.slopes_are_kept else None
        floors = []
        for cut in chunking.cuts(hidden.shape[0]):
            log_prob[cut], entropies[cut], floor, slope = _score(hidden[cut], head, token[cut], chunking)
            floors.append(floor)
            if slopes is not None and slope is not None:
                slopes[cut] = slope
        ctx.chunking, ctx.floors = chunking, floors
        ctx.save_for_backward(*((hidden, weight, token) if slopes is None else (slopes,)))
        ctx.mark_non_differentiable(entropies)
        return log_prob, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the slopes, or compute each chunk again."""
        chunking = ctx.chunking
        if chunking.slopes_are_kept:
            (slopes,) = ctx.saved_tensors
            return (slopes * grad[:, None]).to(slopes.dtype), None, None, None
        hidden, weight, token = ctx.saved_tensors
        head = weight.to(hidden.dtype)
        grad = grad / chunking.temperature
        grad_hidden = torch.empty_like(hidden) if chunking.train_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for cut, floor in zip(chunking.cuts(hidden.shape[0]), ctx.floors, strict=True):
            shifted = _shifted_logits(hidden[cut], head, chunking.temperature)
            slope = _slope(cells(shifted, floor, token[cut]), token[cut], grad[cut])
            del shifted  # makes room for the copy in half precision
            slope = slope.to(head.dtype)
            if grad_hidden is not None:
                grad_hidden[cut] = slope @ head
            if head.dtype == torch.float32:
                grad_weight.addmm_(slope.T, hidden[cut])
            else:
                grad_weight += slope.T @ hidden[cut]
            del slope
        return grad_hidden, grad_weight.to(weight.dtype), None, None


def _score(
    hidden: Tensor, head: Tensor, token: Tensor, chunking: Chunking
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """One chunk: log-probability, entropy, the smallest logit kept, and the slope by the hidden states."""
    shifted = _shifted_logits(hidden, head, chunking.temperature)
    floor = lowest_kept(shifted, chunking.top_p, chunking.top_k)
    rows = cells(shifted, floor, token)
    log_prob, entropies = token_log_prob(rows, token), entropy(rows, finite=True)
    if not chunking.slopes_are_kept:
        return log_prob, entropies, floor, None
    slope = _slope(rows, token, torch.full_like(rows.total, 1.0 / chunking.temperature))
    del shifted, rows  # makes room for the copy in half precision
    return log_prob, entropies, floor, slope.to(head.dtype) @ head


def _shifted_logits(hidden: Tensor, head: Tensor, temperature: float) -> Tensor:
    scaled = nnf.linear(hidden, head).float()
    if temperature != 1:  # a pass over memory that is worth sparing
        scaled = scaled.div_(temperature)
    return scaled.sub_(scaled.amax(-1, keepdim=True))


def _slope(rows: Cells, token: Tensor, scale: Tensor) -> Tensor:
    """`scale` `[n]` times the log-probability's derivative by the logits, in the memory of the weights."""
    slope = rows.weights.mul_((-scale / rows.total)[:, None])
    return slope.scatter_add_(-1, token[:, None], scale[:, None])
