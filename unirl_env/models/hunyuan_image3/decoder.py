"""The decoder: layers of attention and of feed-forward networks, dense or of many experts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from unirl_env.models.hunyuan_image3.attention import Attend, rotate, rotation
from unirl_env.models.hunyuan_image3.settings import Settings


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

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The experts of tokens `[T, D]`.

        Returns:
            Probabilities `[T, E]` float32 of all, and weights `[T, k]` float32 and numbers `[T, k]` int64 of
            those that are chosen.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            scores = self.wg(hidden.float()).softmax(-1)
        chosen = scores.topk(self.chosen, -1).indices
        return scores, self.weigh(scores, chosen), chosen

    def weigh(self, scores: Tensor, chosen: Tensor) -> Tensor:
        """The weights `[T, k]` of experts `chosen` `[T, k]` by the probabilities of all, `[T, E]`."""
        weights = scores.gather(-1, chosen)
        if self.normed:
            return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).eps)
        return weights * self.scale


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
        _, weights, chosen = self.gate(tokens)
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


class Norm(nn.Module):
    """Divides by the root mean square, in float32, and scales."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states `[..., D]`."""
        exact = hidden.float()
        exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * exact.to(hidden.dtype)


class Attention(nn.Module):
    """Grouped queries; turned by their positions first, and normed then.

    One matrix holds, for each head of keys, the queries that look at it, its key and its value.
    """

    def __init__(self, settings: Settings, layer: int):
        super().__init__()
        self.layer, self.kv_heads, self.head_dim = layer, settings.kv_heads, settings.head_dim
        self.num_key_value_groups, self.is_causal = settings.heads // settings.kv_heads, True
        inner, bias = settings.heads * settings.head_dim, settings.attention_bias
        keys = settings.kv_heads * settings.head_dim
        self.qkv_proj = nn.Linear(settings.width, inner + 2 * keys, bias=bias)
        self.o_proj = nn.Linear(inner, settings.width, bias=bias)
        self.query_layernorm = Norm(settings.head_dim, settings.eps)
        self.key_layernorm = Norm(settings.head_dim, settings.eps)

    def forward(
        self, hidden: Tensor, turn: tuple[Tensor, Tensor], attend: Attend
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The attention's addition `[B, Q, D]`, and its new keys and values `[B, K, Q, head_dim]`."""
        groups = self.num_key_value_groups
        fused = self.qkv_proj(hidden).unflatten(-1, (self.kv_heads, groups + 2, self.head_dim))
        query, key, value = fused.split([groups, 1, 1], 3)
        query, key, value = (part.flatten(2, 3).transpose(1, 2) for part in (query, key, value))
        query = self.query_layernorm(rotate(query, turn)).to(value.dtype)
        key = self.key_layernorm(rotate(key, turn)).to(value.dtype)
        seen = attend(self, self.layer, query, key, value)
        return self.o_proj(seen.flatten(2)), key, value


class Layer(nn.Module):
    """Attention and feed-forward, each normed before and added."""

    gradient_checkpointing = False

    def __init__(self, settings: Settings, layer: int):
        super().__init__()
        self.self_attn = Attention(settings, layer)
        self.mlp = feed_forward(settings, layer)
        self.input_layernorm = Norm(settings.width, settings.eps)
        self.post_attention_layernorm = Norm(settings.width, settings.eps)

    def forward(self, hidden: Tensor, turn: tuple[Tensor, Tensor], attend: Attend) -> Any:
        """The hidden states `[B, Q, D]`, and the layer's new keys and values."""
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(self._forward, hidden, turn, attend)
        return self._forward(hidden, turn, attend)

    def _forward(self, hidden: Tensor, turn: tuple[Tensor, Tensor], attend: Attend) -> Any:
        added, key, value = self.self_attn(self.input_layernorm(hidden), turn, attend)
        hidden = hidden + added
        return hidden + self.mlp(self.post_attention_layernorm(hidden)), key, value


class Decoder(nn.Module):
    """Embedding, layers, and the norm that stands before the output layer of words only."""

    def __init__(self, settings: Settings):
        super().__init__()
        self.settings = settings
        self.wte = nn.Embedding(settings.vocab_size, settings.width, settings.pad_id)
        self.layers = nn.ModuleList(Layer(settings, number) for number in range(settings.layers))
        self.ln_f = Norm(settings.width, settings.eps)

    def forward(
        self, embedded: Tensor, positions: Tensor, attend: Attend, *, keep: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The last hidden states, not yet normed.

        Args:
            embedded: `[B, Q, D]`.
            positions: `[B, Q, 2]`.
            attend: What a token sees.
            keep: Return the keys and values.

        Returns:
            `[B, Q, D]`, and of each layer keys and values `[B, K, Q, head_dim]`, none unless `keep`.
        """
        turn = rotation(positions, self.settings.head_dim, self.settings.rope_theta)
        hidden, keys, values = embedded, [], []
        for layer in self.layers:
            hidden, key, value = layer(hidden, turn, attend)
            if keep:
                keys.append(key)
                values.append(value)
        return hidden, tuple(keys), tuple(values)
