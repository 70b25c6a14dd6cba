"""Linear layers within attention, by their names."""

from __future__ import annotations

from torch import nn

from unirl_env.models.shared.of_diffusers import TWO_STREAMS

ATTENTION = ("attn", "attention")
"""What modules of attention are called, or part of it."""
UNREAD = ("attn.add_q_proj", "attn.to_add_out")
"""Of a last block whose text goes nowhere, so that no gradient comes back."""


def two_streams(blocks: int) -> tuple[str, ...]:
    """Those of `blocks` blocks of two streams, where nothing is read of the last one's text."""
    return tuple(
        f"transformer_blocks.{block}.{name}"
        for block in range(blocks)
        for name in TWO_STREAMS
        if block < blocks - 1 or name not in UNREAD
    )


def attention_layers(network: nn.Module) -> tuple[str, ...]:
    """Names of all linear layers within attention, such as blocks share them where that is enough."""
    modules = dict(network.named_modules())
    found: dict[str, list[str]] = {}
    for name, module in modules.items():
        parts = name.split(".")
        inside = [place for place, part in enumerate(parts) if any(word in part for word in ATTENTION)]
        if isinstance(module, nn.Linear) and inside:
            found.setdefault(".".join(parts[inside[0] :]), []).append(name)
    targets: list[str] = []
    for short, names in found.items():
        others = [n for n, m in modules.items() if n.endswith(f".{short}") and not isinstance(m, nn.Linear)]
        targets += names if others else [short]
    return tuple(targets)
