"""Attention over sequences of unequal length that lie one after another in a single row, without padding.

Transformers look up their attention by name. The one registered here, `unirl_packed`, is told where the
sequences begin by a keyword of the forward call, and then lets each see itself alone, or behind another one
that it goes on from; all other layers work on tokens one by one and need no word of it. Without the keyword
it is the ordinary `sdpa`, so that one network both scores packed sequences and generates with a cache.

What a layer asks of its attention beyond that (sinks, soft caps, indices of a sparse attention) is refused by
name, never dropped: sampling and scoring would agree with each other, and both be wrong.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from unirl_env.errors import ContractError, ShapeError
from unirl_env.models.backbone import ForwardOptions

NAME = "unirl_packed"
KEYWORD = "packed_sequences"
FAR = 2**62
"""The place of padding, which nobody sees."""
WASTE = 2
"""A sequence is padded to at most this many times its length, so that one long answer does not widen all."""
HARMLESS = frozenset(
    ("attn_implementation", "cache_position", "cu_seq_lens_k", "cu_seq_lens_q", "experts_implementation",
     "max_length_k", "max_length_q", "num_items_in_batch", "output_attentions", "output_hidden_states",
     "output_router_logits", "position_ids", "return_dict", "seq_idx", "use_cache")
)  # fmt: skip
"""Keywords on which the weights of attention do not depend: they say what else a forward call returns, or
what masks and packings say already."""


@dataclass(frozen=True)
class Packing:
    """Where the sequences of a packed row lie, worked out once for all layers of a forward pass.

    Attributes:
        gather: One `[n_k, m_k]` int64 for each batch of sequences of about one length: the positions in the
            row, the last one repeated as padding.
        trunks: For each batch, what its sequences go on from; None where they begin by themselves.
        scatter: `[L]` int64, where each token stands in the padded batches one after another.
        offsets: `[n + 1]` int32, the beginnings of the sequences and the end of the last.
        longest: Tokens of the longest sequence, with what it goes on from.
        branches: The same for a kernel that takes sequences without padding; None where all begin by
            themselves.
    """

    gather: tuple[Tensor, ...]
    trunks: tuple[Trunk | None, ...]
    scatter: Tensor
    offsets: Tensor
    longest: int
    branches: Branches | None = None

    @classmethod
    def of(
        cls, lengths: Tensor, device: torch.device | str = "cpu", follows: Tensor | None = None
    ) -> Packing:
        """The packing of sequences of `lengths` `[n]` int64, all positive.

        Args:
            lengths: `[n]`.
            device: Where it is used.
            follows: `[n]` int64, the sequence that each goes on from, which must begin by itself, or -1; None
                where all begin by themselves.

        Raises:
            ShapeError: If `lengths` is empty or holds what is no length, or `follows` names no such sequence.
        """
        lengths = torch.as_tensor(lengths).detach().to("cpu", torch.int64)
        if lengths.ndim != 1 or not len(lengths) or lengths.min() < 1:
            raise ShapeError(
                f"`lengths` must be one positive number per sequence [n], got {lengths.tolist()}."
            )
        ends = lengths.cumsum(0)
        offsets = torch.cat([ends.new_zeros(1), ends])
        gather, trunks, filled = [], [], 0
        scatter = torch.empty(int(ends[-1]), dtype=torch.int64)
        branches, before = None, torch.zeros_like(lengths)
        if follows is not None and bool((follows >= 0).any()):
            follows = _checked(follows, lengths)
            before = torch.where(follows >= 0, lengths[follows], 0)
            branches = Branches.of(offsets, before, follows, device)
        for rows in _batches(lengths, before):
            width = int(lengths[rows].max())
            place = torch.arange(width)
            index = offsets[rows][:, None] + torch.minimum(place, lengths[rows][:, None] - 1)
            real = place < lengths[rows][:, None]
            scatter[index[real]] = filled + torch.arange(index.numel()).view_as(index)[real]
            gather.append(index.to(device))
            trunk = None
            if before[rows[0]]:
                trunk = Trunk.of(offsets[follows[rows]], before[rows], width, device)
            trunks.append(trunk)
            filled += index.numel()
        longest = int((lengths + before).max())
        return cls(
            *(tuple(gather), tuple(trunks), scatter.to(device), offsets.to(device, torch.int32), longest),
            branches,
        )


@dataclass(frozen=True)
class Trunk:
    """What the sequences of a batch go on from.

    Attributes:
        index: `[n, w]` int64, its positions in the row, the last one repeated as padding.
        place: `[n, w + m]` int64, the places of the trunk's keys, of which padding is far away, and of the
            sequence's.
        query: `[n, m]` int64, the places of the sequence.
        seen: `[n, 1, m, w + m]` bool, which keys each token sees, by their order alone; `[1, 1, m, w + m]` if
            that is the same for all.
    """

    index: Tensor
    place: Tensor
    query: Tensor
    seen: Tensor

    @classmethod
    def of(cls, begin: Tensor, length: Tensor, width: int, device: torch.device | str) -> Trunk:
        """Of trunks from `begin` `[n]` on, `length` `[n]` tokens long, for sequences of `width` tokens."""
        place = torch.arange(int(length.max()))
        index = begin[:, None] + torch.minimum(place, length[:, None] - 1)
        own = length[:, None] + torch.arange(width)
        keys = torch.cat([torch.where(place < length[:, None], place, FAR).expand(len(length), -1), own], 1)
        if bool((length == length[0]).all()):
            keys, own = keys[:1], own[:1]
        seen = (keys[:, None] <= own[..., None])[:, None]
        return cls(index.to(device), keys.to(device), own.to(device), seen.to(device))

    def reached(self, window: int | None, chunk: int | None) -> Tensor:
        """`seen`, no further back than a window, and within a chunk."""
        seen, query, place = self.seen, self.query[:, None, :, None], self.place[:, None, None]
        if window is not None:
            seen = seen & (query - place < window)
        if chunk is not None:
            seen = seen & (query // chunk == place // chunk)
        return seen


@dataclass(frozen=True)
class Branches:
    """The keys of all sequences one after another, each behind those of what it goes on from.

    Attributes:
        index: `[K]` int64, their positions in the row.
        offsets: `[n + 1]` int32, where the keys of each sequence begin, and the end of the last.
        longest_query: Tokens of the longest sequence.
    """

    index: Tensor
    offsets: Tensor
    longest_query: int

    @classmethod
    def of(cls, offsets: Tensor, before: Tensor, follows: Tensor, device: torch.device | str) -> Branches:
        """Of sequences at `offsets` `[n + 1]` with `before` `[n]` tokens of the sequences `follows` `[n]`."""
        lengths = offsets[1:] - offsets[:-1]
        ends = (lengths + before).cumsum(0)
        which = torch.arange(len(lengths)).repeat_interleave(lengths + before)
        place = torch.arange(int(ends[-1])) - (ends - lengths - before)[which]
        own, trunk = offsets[:-1][which] + place - before[which], offsets[follows[which]] + place
        index = torch.where(place < before[which], trunk, own)
        begins = torch.cat([ends.new_zeros(1), ends])
        return cls(index.to(device), begins.to(device, torch.int32), int(lengths.max()))


def _checked(follows: Tensor, lengths: Tensor) -> Tensor:
    follows = torch.as_tensor(follows).detach().to("cpu", torch.int64)
    fits = follows.shape == lengths.shape and bool((follows < len(lengths)).all())
    if not fits or bool((follows[follows[follows >= 0]] >= 0).any()):
        raise ShapeError(
            f"`follows` must name, for each of {len(lengths)} sequences, one that begins by itself, or -1, "
            f"got {follows.tolist()}."
        )
    return follows


def _batches(lengths: Tensor, before: Tensor) -> list[Tensor]:
    """Row numbers in batches, so that none is much shorter than the longest of its batch.

    Sequences that begin by themselves, and those that have `before` `[n]` tokens before them, do not mix; of
    the latter, those before them are of about one length, too.
    """
    kinds = [(before == 0).nonzero().flatten(), (before > 0).nonzero().flatten()]
    trunks = [part for rows in kinds if len(rows) for part in _alike(rows, before)]
    return [part for rows in trunks for part in _alike(rows, lengths)]


def _alike(rows: Tensor, sizes: Tensor) -> list[Tensor]:
    """`rows` in parts, in each of which no size is more than `WASTE` times another."""
    sizes = sizes[rows]
    if sizes.max() <= WASTE * sizes.min():
        return [rows]
    order = sizes.argsort(stable=True)
    parts, start = [], 0
    ordered = sizes[order].tolist()
    for stop in range(1, len(ordered) + 1):
        if stop == len(ordered) or ordered[stop] > WASTE * ordered[start]:
            parts.append(rows[order[start:stop]])
            start = stop
    return parts


def register() -> str:
    """Make the attention known to transformers; returns its name. Safe to call again."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def reading_keywords(how: ForwardOptions, device: torch.device | str) -> dict[str, Any]:
    """The keywords of a forward call of transformers, packed or with a cache; see `TokenBackbone.hidden`.

    Packed, they say where the sequences lie, and give a mask that stands for none: one of four axes passes
    through transformers as it is. Without it they would read the packing off the positions and make a mask of
    L x L.
    """
    lengths, cache = how.get("lengths"), how.get("cache")
    if lengths is None:
        return {"use_cache": cache is not None, "past_key_values": cache, "attention_mask": how.get("mask")}
    passing = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    packing = Packing.of(lengths, device, how.get("follows"))
    return {"use_cache": False, KEYWORD: packing, "attention_mask": passing}


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    packed_sequences: Packing | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence and to what it goes on from; without a packing, that of `sdpa`.

    Sliding windows and chunks are those of the layer's configuration, counted from a sequence's beginning.

    Args:
        module: The attention layer.
        query: `[1, H, L, D]`.
        key: `[1, K, L, D]`, where K divides H.
        value: `[1, K, L, D]`.
        attention_mask: Not read where a packing is given.
        dropout: Of attention weights.
        scaling: Of scores; None is `D ** -0.5`.
        sliding_window: How many tokens back a token sees, itself included; None is all.
        is_causal: False asks for attention to both sides, which only `sdpa` does.
        packed_sequences: Where the sequences lie.
        **options: Others that transformers hands down.

    Returns:
        `[1, L, H, D]`, and no weights.

    Raises:
        ContractError: If the architecture does not hand the keyword down to its attention, or asks for
            something that is not understood here.
    """
    for name, asked in options.items():
        if asked is not None and name not in HARMLESS:
            raise _unknown(module, f"keyword `{name}`")
    if packed_sequences is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        if attention_mask is not None and attention_mask.numel() == 1 < query.shape[2]:
            raise ContractError(
                f"{type(module).__name__} must hand the keywords of its forward call to its attention to "
                "score packed sequences, and does not; try a model that transformers itself implements."
            )
        if query.shape[2] == 1 and query.shape[1] != key.shape[1]:
            return _one_token(query, key, value, attention_mask, dropout, scaling), None
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal
        )
    if is_causal is False:
        raise _unknown(module, "`is_causal=False`")
    window, chunk = _reach(module, sliding_window)
    if chunk is not None and packed_sequences.longest <= chunk:
        chunk = None
    tokens = [state[0].transpose(0, 1) for state in (query, key, value)]  # [L, H, D]
    if not dropout and chunk is None and _flash_can(query, value):
        return _flash(*tokens, packed_sequences, scaling, window)[None], None
    first = packed_sequences.gather[0]
    if first.numel() == query.shape[2]:  # all of one length, as they lie
        shaped = (state.unflatten(0, first.shape) for state in tokens)
        return _causal(*shaped, dropout, scaling, window, chunk)[None], None
    parts = []
    for index, trunk in zip(packed_sequences.gather, packed_sequences.trunks, strict=True):
        states, mask = [state[index] for state in tokens], None
        if trunk is not None:
            before = (state[trunk.index] for state in tokens[1:])
            states[1:] = (torch.cat(both, 1) for both in zip(before, states[1:], strict=True))
            mask = trunk.reached(window, chunk)
        parts.append(_causal(*states, dropout, scaling, window, chunk, mask))
    padded = torch.cat(parts) if len(parts) > 1 else parts[0]
    return padded.index_select(0, packed_sequences.scatter)[None], None


def _reach(module: nn.Module, window: int | None) -> tuple[int | None, int | None]:
    """How far a layer sees: its sliding window and its chunk, None where there is none.

    Some architectures say it by the mask alone, which packed sequences have not; their configuration knows.
    """
    config, index = getattr(module, "config", None), getattr(module, "layer_idx", None)
    kinds = getattr(config, "layer_types", None)
    if not kinds or index is None:
        return window, None
    kind = kinds[index]
    if kind == "full_attention":
        return window, None
    if kind == "sliding_attention":
        window = getattr(config, "sliding_window", None) if window is None else window
        if window is not None:
            return window, None
    elif kind == "chunked_attention" and getattr(config, "attention_chunk_size", None) is not None:
        return window, config.attention_chunk_size
    raise _unknown(module, f"layer of kind {kind!r}")


def _unknown(module: nn.Module, what: str) -> ContractError:
    return ContractError(
        f"{type(module).__name__} must ask for nothing that attention over packed sequences does not know, "
        f"got the {what}; try one sequence at a time."
    )


def _one_token(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scaling: float | None
) -> Tensor:
    """Attention of one token per row `[B, 1, H, D]`: the heads that share a key read it together.

    Under a mask, transformers' `sdpa` copies all cached keys and values for each of these heads, at every
    token: two thirds of the time of generating.
    """
    batch, heads, _, width = query.shape
    together = query.reshape(batch, key.shape[1], -1, width)
    out = nnf.scaled_dot_product_attention(
        together, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling
    )
    return out.reshape(batch, 1, heads, value.shape[-1])


def _causal(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    scaling: float | None,
    window: int | None,
    chunk: int | None,
    mask: Tensor | None = None,
) -> Tensor:
    """Attention of padded sequences `[n, m, H, D]`, flat: `[n * m, H, D]`.

    Padding stands at the end, where no real token looks: it needs no mask. `mask` `[n, 1, m, k]` says what is
    seen of keys that are more.
    """
    length, heads, given = *query.shape[1:3], mask is not None
    if window is not None and window < length and not given:
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
        mask = mask.triu(1 - window)
    if chunk is not None and not given:
        place = torch.arange(length, device=query.device)
        together = (place[:, None] >= place) & (place[:, None] // chunk == place // chunk)
        mask = together if mask is None else mask & together
    out = nnf.scaled_dot_product_attention(
        *(state.transpose(1, 2) for state in (query, key, value)),
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=key.shape[2] != heads,
    )
    return out.transpose(1, 2).flatten(0, 1)


def _flash_can(query: Tensor, value: Tensor) -> bool:
    """Whether torch's flash attention for packed sequences is there and takes such queries and values."""
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    if query.shape[-1] != value.shape[-1]:
        return False
    fits = query.shape[-1] % 8 == 0 and query.shape[-1] <= 256
    return fits and torch.cuda.get_device_capability(query.device) >= (8, 0) and _torch_has_varlen()


@cache
def _torch_has_varlen() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"window_size", "enable_gqa"} <= set(inspect.signature(varlen_attn).parameters)


def _flash(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float | None, window: int | None
) -> Tensor:
    """Attention `[L, H, D]` of packed sequences by one kernel, without any padding."""
    from torch.nn.attention.varlen import varlen_attn

    begins, longest = packing.offsets, packing.longest
    if packing.branches is not None:
        # Fewer queries than keys: the last query stands at the last key.
        begins, longest = packing.branches.offsets, packing.branches.longest_query
        key, value = key[packing.branches.index], value[packing.branches.index]
    return varlen_attn(
        *(query.contiguous(), key.contiguous(), value.contiguous()),
        *(packing.offsets, begins, longest, packing.longest),
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
