"""Feed-forward layers: dense ones, and those of many experts of which a token is sent to a few."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from unirl_env.models.hunyuan_image3.settings import Settings

__all__ = ["Experts", "FeedForward", "Router", "feed_forward"]


class FeedForward(nn.Module):
    """`down(up * silu(gate))`; one matrix holds `up` and, behind it, `gate`."""

    def __init__(self, width: int, inner: int, *, bias: bool):
        super().__init__()
        self.gate_and_up_proj = nn.Linear(width, 2 * inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states `[..., D]`."""
        up, gate = self.gate_and_up_proj(hidden).chunk(2, -1)
        return self.down_proj(up * nnf.silu(gate))


class Router(nn.Module):
    """Chooses the experts of a token, in float32 whatever the dtype of the other layers."""

    def __init__(self, settings: Settings, layer: int):
        super().__init__()
        self.chosen, self.scale = settings.chosen[layer], settings.routed_scale
        self.normed = settings.norm_chosen and self.chosen > 1
        self.wg = nn.Linear(settings.width, settings.experts[layer], bias=False, dtype=torch.float32)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Weights `[T, k]` float32 and numbers `[T, k]` int64 of the experts of tokens `[T, D]`."""
        with torch.autocast(hidden.device.type, enabled=False):
            scores = nnf.linear(hidden.float(), self.wg.weight.float()).softmax(-1)
        weights, chosen = scores.topk(self.chosen, -1)
        if self.normed:
            return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).eps), chosen
        return weights * self.scale, chosen


class Experts(nn.Module):
    """A router, its experts, and one feed-forward layer that every token passes as well.

    No token is dropped, whatever a checkpoint says of `moe_drop_tokens`, and the answers to a token are
    summed in the order of its choice: apart from the rounding of matrix products, a token's result does not
    depend on the others of its batch. A token that is scored in other company must not be another action.
    """

    def __init__(self, settings: Settings, layer: int):
        super().__init__()
        width, inner = settings.width, settings.expert_width[layer]
        self.gate = Router(settings, layer)
        self.experts = nn.ModuleList(
            FeedForward(width, inner, bias=settings.mlp_bias) for _ in range(settings.experts[layer])
        )
        self.shared_mlp = None
        if settings.shared[layer]:
            self.shared_mlp = FeedForward(width, settings.shared[layer] * inner, bias=settings.mlp_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states `[B, Q, D]`."""
        tokens = hidden.flatten(0, -2)
        weights, chosen = self.gate(tokens)
        order = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=len(self.experts)).tolist()
        # Sorted by expert, so that each expert reads its tokens in one matrix product.
        sent = tokens[order // chosen.shape[1]].split(counts)
        answers = torch.cat(
            [expert(part) for expert, part in zip(self.experts, sent, strict=True) if len(part)]
        )
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        answers = answers[back].unflatten(0, chosen.shape)
        mixed = (answers * weights[..., None].to(answers.dtype)).sum(1).view_as(hidden)
        return mixed if self.shared_mlp is None else self.shared_mlp(hidden) + mixed


def feed_forward(settings: Settings, layer: int) -> nn.Module:
    """The feed-forward part of a layer."""
    if settings.experts[layer] > 1:
        return Experts(settings, layer)
    return FeedForward(settings.width, settings.dense_width, bias=settings.mlp_bias)
