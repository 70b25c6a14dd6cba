"""Routers of a mixture of experts: what they choose, and how they would weigh another choice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

CLASSES = "TopKRouter"
"""How transformers calls routers that return logits `[T, E]`, weights `[T, k]` and experts `[T, k]`."""


class Router(NamedTuple):
    """A module that chooses k of E experts for each of T tokens.

    Attributes:
        module: Returns a tuple: a score of each expert `[T, E]`, the weights `[T, k]` of those that it chose,
            and their numbers `[T, k]` int64.
        weigh: `(what the module returned, experts [T, k]) -> ` the weights `[T, k]` that it would have given
            these, with gradient to its scores.
    """

    module: nn.Module
    weigh: Callable[[Any, Tensor], Tensor]


def top_k_routers(network: nn.Module) -> tuple[Router, ...]:
    """The routers of a network of transformers, in the order of its layers; none where it has none.

    Known are those that take the k experts of the largest logits, and weigh them by their probabilities.
    """
    found = (module for module in network.modules() if type(module).__name__.endswith(CLASSES))
    return tuple(Router(module, _weighing(module)) for module in found)


def _weighing(module: nn.Module) -> Callable[[Any, Tensor], Tensor]:
    normed = getattr(module, "norm_topk_prob", True)

    def weigh(output: Any, chosen: Tensor) -> Tensor:
        logits, weights, _ = output
        kept = logits.softmax(-1, dtype=torch.float32).gather(-1, chosen)
        return (kept / kept.sum(-1, keepdim=True) if normed else kept).to(weights.dtype)

    return weigh
