"""Texts one at a time: how a network is read that cannot tell texts in a packed row, or padding, from text.

Recurrent and convolution layers carry a state from one token of a row to the next, whatever their positions
say; other architectures number the tokens of a row themselves, or have an attention of their own.
Transformers takes the borders between texts only with kernels for CUDA. One text to a row is right with every
architecture, and slower.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from unirl_env.errors import ContractError
from unirl_env.models.backbone import ForwardOptions

MARK = "unirl_reads_alone"
ATTENTIONS = ("full_attention", "sliding_attention", "chunked_attention")
"""Kinds of layers that attention over packed sequences knows."""


def reads_alone(network: nn.Module) -> bool:
    """Whether texts of this network stand alone: one to a row, rows without padding."""
    return getattr(network, MARK, False)


def mark_alone(network: nn.Module, alone: bool) -> None:
    """Let texts of this network stand alone, or not."""
    setattr(network, MARK, alone)


def why_alone(network: nn.Module) -> str | None:
    """What of a network's architecture asks for texts that stand alone; None if nothing does."""
    config = network.config.get_text_config()
    strange = set(getattr(config, "layer_types", None) or ()) - set(ATTENTIONS)
    if strange or getattr(network, "_is_stateful", False):
        return f"layers of the kind {', '.join(sorted(strange)) or 'recurrent'}"
    if getattr(config, "attn_temperature_tuning", False):
        return "`attn_temperature_tuning`, which counts the tokens of a row"
    if not network._can_set_attn_implementation():
        return "an attention of its own"
    return None


def read_alone(backbone: nn.Module, tokens: Tensor, how: ForwardOptions) -> Tensor:
    """The last hidden states `[1, L, D]` of a packed row, or `[B, t, D]` with a cache.

    Args:
        backbone: The network without its output layer.
        tokens: `[1, L]` packed, or `[B, t]`; they are counted from what the cache holds.
        how: Without a mask, as no row is padded.

    Raises:
        ContractError: If rows are padded, or the architecture takes no cache.
    """
    lengths, cache = how.get("lengths"), how.get("cache")
    if lengths is not None:
        texts = tokens.split(lengths.tolist(), dim=1)
        return torch.cat([backbone(input_ids=t, use_cache=False).last_hidden_state for t in texts], 1)
    if how.get("mask") is not None:
        raise ContractError(
            f"Rows for {type(backbone).__name__} must be of one length, got some that are padded; try to "
            "generate texts of one length together."
        )
    if cache is None:
        return backbone(input_ids=tokens, use_cache=False).last_hidden_state
    known = inspect.signature(backbone.forward).parameters
    for name in ("past_key_values", "cache_params"):
        if name in known:
            return backbone(input_ids=tokens, use_cache=True, **{name: cache}).last_hidden_state
    raise ContractError(
        f"{type(backbone).__name__} must take a cache of transformers to generate, and takes none; try "
        "another model."
    )
