"""BAGEL's decoder: two sets of weights, one for what is understood and one for what is drawn, one attention.

Modules are named as in the published checkpoint; `_moe_gen` ends the names of the second set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unirl_env.models.bagel.seeing import Seeing

Reader = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Kinds:
    """Which tokens of a batch `[B, L]` are drawn: they come last in `[T, D]`, T = B L.

    Attributes:
        shape: B and L.
        understood: How many of the T tokens are not drawn.
        order: `[T]` int64, where each came from; None if none is drawn.
        back: `[T]` int64, where each has gone.
    """

    shape: tuple[int, int]
    understood: int
    order: Tensor | None = None
    back: Tensor | None = None

    @classmethod
    def of(cls, states: Tensor, drawn: Tensor | None) -> Kinds:
        """The kinds of `states` `[B, L, D]`; `drawn` is `[B, L]` bool, or None."""
        shape = (states.shape[0], states.shape[1])
        if drawn is None:
            return cls(shape, shape[0] * shape[1])
        order = drawn.flatten().int().argsort(stable=True)
        return cls(shape, int((~drawn).sum()), order, order.argsort())

    def sorted(self, states: Tensor) -> Tensor:
        """`[B, L, ...]` as `[T, ...]`."""
        flat = states.flatten(0, 1)
        return flat if self.order is None else flat.index_select(0, self.order)

    def restored(self, states: Tensor) -> Tensor:
        """`[T, ...]` as `[B, L, ...]`."""
        states = states if self.back is None else states.index_select(0, self.back)
        return states.unflatten(0, self.shape)

    def by(self, understand: Reader, draw: Reader, states: Tensor) -> Tensor:
        """Each token of `states` `[T, D]` by the reader of its kind."""
        if self.order is None:
            return understand(states)
        return torch.cat([understand(states[: self.understood]), draw(states[self.understood :])])


class Norm(nn.Module):
    """Root-mean-square norm, in float32."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, states: Tensor) -> Tensor:
        """`[..., D]`."""
        wide = states.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(states.dtype)


class FeedForward(nn.Module):
    """Qwen's gated feed-forward layer."""

    def __init__(self, width: int, intermediate: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, intermediate, bias=False)
        self.up_proj = nn.Linear(width, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, width, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """`[T, D]`."""
        return self.down_proj(nnf.silu(self.gate_proj(states)) * self.up_proj(states))


class Attention(nn.Module):
    """Attention over all tokens, whose states each kind makes by its own weights."""

    def __init__(self, config: Any, number: int):
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.number, self.head = number, width // config.num_attention_heads
        keys = config.num_key_value_heads * self.head
        for end in ("", "_moe_gen"):
            self.add_module(f"q_proj{end}", nn.Linear(width, width))
            self.add_module(f"k_proj{end}", nn.Linear(width, keys))
            self.add_module(f"v_proj{end}", nn.Linear(width, keys))
            self.add_module(f"o_proj{end}", nn.Linear(width, width, bias=False))
            self.add_module(f"q_norm{end}", Norm(self.head, eps))
            self.add_module(f"k_norm{end}", Norm(self.head, eps))

    def forward(self, states: Tensor, kinds: Kinds, rotary: tuple[Tensor, Tensor], seeing: Seeing) -> Tensor:
        """`[T, D]`; `rotary` is cosine and sine, each `[B, L, 1, head]`."""
        query = _turned(self._heads("q", states, kinds), rotary)
        key = _turned(self._heads("k", states, kinds), rotary)
        value = kinds.restored(
            kinds.by(self.v_proj, self.v_proj_moe_gen, states).unflatten(-1, (-1, self.head))
        )
        out = seeing(self.number, *(state.transpose(1, 2) for state in (query, key, value)))
        return kinds.by(self.o_proj, self.o_proj_moe_gen, kinds.sorted(out.flatten(2)))

    def _heads(self, name: str, states: Tensor, kinds: Kinds) -> Tensor:
        """Normed queries or keys `[B, L, H, head]`."""

        def reader(end: str) -> Reader:
            project, norm = getattr(self, f"{name}_proj{end}"), getattr(self, f"{name}_norm{end}")
            return lambda part: norm(project(part).unflatten(-1, (-1, self.head)))

        return kinds.restored(kinds.by(reader(""), reader("_moe_gen"), states))


class Layer(nn.Module):
    """Attention and feed-forward, each with norms of both kinds."""

    def __init__(self, config: Any, number: int):
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config, number)
        self.mlp = FeedForward(width, config.intermediate_size)
        self.mlp_moe_gen = FeedForward(width, config.intermediate_size)
        self.input_layernorm = Norm(width, eps)
        self.input_layernorm_moe_gen = Norm(width, eps)
        self.post_attention_layernorm = Norm(width, eps)
        self.post_attention_layernorm_moe_gen = Norm(width, eps)

    def forward(self, states: Tensor, kinds: Kinds, rotary: tuple[Tensor, Tensor], seeing: Seeing) -> Tensor:
        """`[T, D]`."""
        normed = kinds.by(self.input_layernorm, self.input_layernorm_moe_gen, states)
        states = states + self.self_attn(normed, kinds, rotary, seeing)
        return states + kinds.by(
            lambda part: self.mlp(self.post_attention_layernorm(part)),
            lambda part: self.mlp_moe_gen(self.post_attention_layernorm_moe_gen(part)),
            states,
        )


class Decoder(nn.Module):
    """Embeddings, layers and last norms.

    Args:
        config: A `Qwen2Config` of transformers.
    """

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.norm_moe_gen = Norm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, states: Tensor, positions: Tensor, seeing: Seeing, drawn: Tensor | None = None
    ) -> Tensor:
        """The last hidden states `[B, L, D]` of embedded tokens `[B, L, D]`.

        Args:
            states: `[B, L, D]`.
            positions: `[B, L]` int64.
            seeing: How tokens attend.
            drawn: `[B, L]` bool, which tokens are read by the weights that draw; None: none.
        """
        kinds, rotary = Kinds.of(states, drawn), self._rotary(positions, states)
        states = kinds.sorted(states)
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        for layer in self.layers:
            if recompute:
                states = checkpoint(layer, states, kinds, rotary, seeing, use_reentrant=False)
            else:
                states = layer(states, kinds, rotary, seeing)
        return kinds.restored(kinds.by(self.norm, self.norm_moe_gen, states))

    def _rotary(self, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine `[B, L, 1, head]` of the angles at `positions`."""
        width = self.config.hidden_size // self.config.num_attention_heads
        place = torch.arange(0, width, 2, device=like.device, dtype=torch.float32) / width
        angle = positions[..., None, None].float() * self.config.rope_parameters["rope_theta"] ** -place
        angle = torch.cat([angle, angle], -1)
        return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def _turned(states: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """States `[B, L, H, head]` turned by their positions."""
    cosine, sine = rotary
    first, second = states.chunk(2, -1)
    return states * cosine + torch.cat([-second, first], -1) * sine
