"""What lies between the last hidden states and the logits, as one matrix: `logits = states @ weight.T`.

A scale of the logits goes into the states. A bias is one more column of the weight, which a one in the states
is multiplied with; an adapter of rank r is r more columns, which its own low-rank states are multiplied with.
So whoever samples and whoever scores need to know of neither.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from unirl_env.errors import ConfigError

CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Settings under which logits are no matrix times hidden states."""
SCALES = {"logit_scale": False, "lm_head_multiplier": False, "logits_scaling": True}
"""Settings that scale logits, and whether they divide them."""
MULTIPLIES = ("hyperclovax",)
"""Families in which `logits_scaling` multiplies."""
ALIGNED = 8
"""Columns are added by eights: matrix kernels for half precision want aligned rows."""


def require_no_cap(config: Any, pretrained: str) -> None:
    """Refuse a soft cap on logits.

    Args:
        config: Of the text model.
        pretrained: For the error.

    Raises:
        ConfigError: Naming the setting.
    """
    for name in CAPS:
        if getattr(config, name, None) is not None:
            raise ConfigError(
                f"`pretrained` must be a model whose logits are its hidden states times a matrix, got "
                f"`{name}` {getattr(config, name)} in {pretrained!r}; try a model without a soft cap, such "
                "as Qwen3 or Gemma 3."
            )


def logit_scale(config: Any) -> float:
    """What a text model of this configuration multiplies its logits with."""
    scale = 1.0
    for name, divides in SCALES.items():
        value = getattr(config, name, None)
        if value is not None:
            divides = divides and config.model_type not in MULTIPLIES
            scale *= 1.0 / value if divides else value
    return float(scale)


def output_states(layer: nn.Module, states: Tensor, scale: float = 1.0) -> Tensor:
    """States `[..., D + c]` from which `output_weight` makes logits.

    Args:
        layer: The output layer, with or without an adapter.
        states: The last hidden states `[..., D]`.
        scale: Of the logits.
    """
    columns = [states]
    if _base(layer).bias is not None:
        columns.append(torch.ones_like(states[..., :1]))
    for down, _, strength in _adapters(layer):
        low = nnf.linear(states.to(down.dtype), down) * strength
        columns.append(low.to(states.dtype))
    if len(columns) > 1:
        states = _padded(torch.cat(columns, -1))
    return states if scale == 1 else states * scale


def output_weight(layer: nn.Module) -> Tensor:
    """The output layer as one matrix `[V, D + c]`; without bias and adapter the weight itself.

    Of a matrix that processes share, all have the whole one, and compute the same with it.
    """
    base = _base(layer)
    weight = _whole(base.weight)
    columns = [weight]
    if base.bias is not None:
        columns.append(_whole(base.bias)[:, None])
    columns += [up.to(weight.dtype) for _, up, _ in _adapters(layer)]
    return weight if len(columns) == 1 else _padded(torch.cat(columns, -1))


def _base(layer: nn.Module) -> nn.Module:
    return layer.get_base_layer() if hasattr(layer, "base_layer") else layer


def _adapters(layer: nn.Module) -> list[tuple[Tensor, Tensor, float]]:
    """Of each adapter at work its two matrices `[r, D]` and `[V, r]`, and its strength."""
    if not hasattr(layer, "base_layer") or layer.disable_adapters:
        return []
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    return [(layer.lora_A[n].weight, layer.lora_B[n].weight, layer.scaling[n]) for n in names]


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _padded(columns: Tensor) -> Tensor:
    return nnf.pad(columns, (0, -columns.shape[-1] % ALIGNED))
