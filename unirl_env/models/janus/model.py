"""Janus-Pro: one transformer that writes text and then draws a picture, token by token."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from unirl_env.errors import ContractError
from unirl_env.models.janus.pictures import JanusPictures
from unirl_env.models.janus.text import JanusText
from unirl_env.models.unified import SharedBackbone, UnifiedModel

__all__ = ["Janus"]


class Janus(SharedBackbone, UnifiedModel):
    """Janus and Janus-Pro as transformers loads them; pictures are discrete tokens.

    A text that ends with the begin-of-image token is followed by a picture of `image.num_tokens` tokens. The
    published checkpoints end their texts with the end-of-text token instead, and are told when to draw:
    with `eos_opens` the world then writes begin-of-image behind it. Prompts bring no pictures.

    Published pictures are drawn at guidance 5. It is part of the distribution that samples and that is
    trained, and reads every picture twice.

    Args:
        pretrained: A hub id or a directory, in transformers' own form.
        dtype: Of weights and activations.
        device: Where the network and the VQ model are loaded.
        revision: Branch, tag or commit of the hub repository.
        system: Stands before the chat; None is nothing, as the model is published to draw.
        eos_opens: Whether a picture also follows a text that ends with the end-of-text token.
        guidance: Scale of classifier-free guidance over picture tokens; 1 is without.

    Raises:
        ModelNotFound: If the model cannot be loaded; names the id, the cause and the embedded alternative.
        ConfigError: If the model is of another family, its parts do not fit together, or `guidance` is no
            number from 1.

    Reference:
        Chen et al., Janus-Pro: Unified Multimodal Understanding and Generation with Data and Model Scaling
        (arXiv 2501.17811).
    """

    discrete = True
    context_keys = ("tokens", "length")
    max_images = 0

    def __init__(
        self,
        pretrained: str,
        *,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        revision: str | None = None,
        system: str | None = None,
        eos_opens: bool = False,
        guidance: float = 1.0,
    ):
        self.text = self.whole = JanusText(
            pretrained, dtype=dtype, device=device, revision=revision, system=system
        )
        self.image = JanusPictures(self.text, guidance=guidance)
        self.pretrained, self.lora_targets = self.text.pretrained, self.text.lora_targets
        begin = self.text.begin_of_image
        self.opens = (begin, *self.text.end_of_text) if eos_opens else (begin,)

    def opening(self, ended_by: int | None) -> list[int]:
        """The begin-of-image token, unless the text itself ended with it.

        Raises:
            ContractError: If no picture follows `ended_by`.
        """
        if ended_by is not None and ended_by not in self.opens:
            raise ContractError(
                f"`ended_by` must be one of {self.opens}, after which a picture follows, got {ended_by}; try "
                "`eos_opens=True`, with which one follows every text that ends."
            )
        begin = self.text.begin_of_image
        return [] if ended_by == begin else [begin]

    def private(self, network: nn.Module, phase: str) -> Iterable[nn.Parameter]:
        """Text: the output layer, unless it is the embeddings. Picture: its embeddings and its head."""
        if phase == "text":
            embedded = network.get_input_embeddings().weight
            return tuple(w for w in network.get_output_embeddings().parameters() if w is not embedded)
        base = network.base_model
        own = (base.generation_embeddings, base.generation_aligner, base.generation_head)
        return tuple(weight for module in own for weight in module.parameters())
