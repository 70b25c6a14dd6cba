"""Contexts of texts of unequal length, filled up to one width."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad


def padded_texts(embeds: Tensor, mask: Tensor | None, width: int) -> dict[str, Tensor]:
    """A context of one width, of what an `encode_prompt` of diffusers returned.

    Args:
        embeds: `[B, n, D]`; what is beyond `width` is cut.
        mask: `[B, n]`; None where every token counts.
        width: Of all contexts, in tokens.

    Returns:
        `prompt_embeds` `[B, width, D]`, zeros where no token is, and `prompt_embeds_mask` `[B, width]` int64.
    """
    mask = embeds.new_ones(embeds.shape[:2]) if mask is None else mask
    room = width - embeds.shape[1]
    return {"prompt_embeds": pad(embeds, (0, 0, 0, room)), "prompt_embeds_mask": pad(mask.long(), (0, room))}
