"""The decoder: layers of attention and experts, by the names of the published weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unirl_env.models.hunyuan_image3.attention import Attend
from unirl_env.models.hunyuan_image3.experts import feed_forward
from unirl_env.models.hunyuan_image3.rotary import rotate, rotation
from unirl_env.models.hunyuan_image3.settings import Settings

__all__ = ["Decoder", "Layer", "Norm"]


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
