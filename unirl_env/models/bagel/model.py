"""BAGEL as a unified model: its two views and what they share."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from unirl_env.arguments.values import whole
from unirl_env.errors import ConfigError, ContractError
from unirl_env.models.bagel.autoencoder import Autoencoder
from unirl_env.models.bagel.image import PICTURES, BagelImage
from unirl_env.models.bagel.network import LATENT_SIDE
from unirl_env.models.bagel.pictures import PromptPictures
from unirl_env.models.bagel.published import Published
from unirl_env.models.bagel.text import BagelText
from unirl_env.models.options import as_dtype
from unirl_env.models.unified import SharedBackbone, UnifiedModel

__all__ = ["Bagel"]

PIXELS = 16
"""Along the side of a token."""
TEXT_TOKENS = 512


class Bagel(SharedBackbone, UnifiedModel):
    """BAGEL-7B-MoT and whatever is published in the same form (`ema.safetensors`, `ae.safetensors`).

    With `thinking` the model plans in words, `<|im_start|><think>...</think><|im_end|>`, and the picture
    follows the end of that text. Without it the picture follows the prompt at once, as published: play such
    episodes with `max_new_tokens=0`. The tokens that begin and end a picture belong to the picture itself:
    they see it and are seen by it, so that nothing stands between text and picture.

    With `max_images` a prompt may bring pictures to change. Each is taken in twice, as the autoencoder's
    latent and by the vision tower, scaled to the size that is drawn.

    Args:
        pretrained: A hub id or a directory.
        height: Pixels, a multiple of 16 up to 1024.
        width: Pixels, likewise.
        dtype: Of weights and activations.
        device: Where network and autoencoder are loaded.
        revision: Branch, tag or commit of the hub repository.
        thinking: Plan in words before drawing.
        system: Stands before every prompt; None is the published words with `thinking`, else nothing.
        max_images: The most pictures of a prompt.
        max_prompt_tokens: Width of the image view's encoded prompts; None is 512 and the pictures' tokens.
        rows_per_forward: Evaluate the network on exactly that many pictures at a time. With 1, an episode
            comes out bitwise the same alone, in any batch, and in the learner; one picture of the published
            sizes fills a device.

    Raises:
        ModelNotFound: If the model cannot be loaded; names the id, the cause and the embedded alternative.
        ConfigError: If a setting is out of range.

    Reference:
        Deng et al., Emerging Properties in Unified Multimodal Pretraining (arXiv 2505.14683).
    """

    def __init__(
        self,
        pretrained: str,
        *,
        height: int = 1024,
        width: int = 1024,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        revision: str | None = None,
        thinking: bool = False,
        system: str | None = None,
        max_images: int = 0,
        max_prompt_tokens: int | None = None,
        rows_per_forward: int | None = 1,
    ):
        for name, size in (("height", height), ("width", width)):
            size = whole(name, size)
            if size % PIXELS or not 0 < size <= LATENT_SIDE * PIXELS:
                near = min(max(round(size / PIXELS), 1), LATENT_SIDE) * PIXELS
                raise ConfigError(
                    f"`{name}` must be a positive multiple of {PIXELS} up to {LATENT_SIDE * PIXELS}, got "
                    f"{size}; try {near}."
                )
        if rows_per_forward is not None:
            whole("rows_per_forward", rows_per_forward, 1, hint="try 1")
        whole("max_images", max_images, 0, hint="try 1")
        if max_prompt_tokens is not None:
            whole("max_prompt_tokens", max_prompt_tokens, 1, hint="try 512")
        dtype, device = as_dtype("dtype", dtype), torch.device(device)
        published = Published(pretrained, revision)
        autoencoder = Autoencoder(published, dtype=dtype, device=device)
        pictures, tokens = None, TEXT_TOKENS
        if max_images:
            pictures = PromptPictures(autoencoder, published.vision, height=height, width=width)
            tokens += max_images * sum(count + 2 for count in pictures.tokens)
        self.pretrained, self.max_images = published.pretrained, max_images
        self.text = self.whole = BagelText(
            published,
            pictures,
            dtype=dtype,
            device=device,
            system=system,
            thinking=thinking,
            max_images=max_images,
        )
        self.image = BagelImage(
            self.text,
            autoencoder,
            height=height,
            width=width,
            max_prompt_tokens=max_prompt_tokens or tokens,
            rows_per_forward=rows_per_forward,
        )
        self.opens = self.text.eos_ids
        self.context_keys = ("tokens", "length", *(PICTURES if max_images else ()))
        self.lora_targets = (*self.text.lora_targets, *self.image.lora_targets)

    def opening(self, ended_by: int | None) -> list[int]:
        """Nothing; but where a thought was begun and none is written, its end.

        Raises:
            ContractError: If no picture follows `ended_by`.
        """
        if ended_by is None:
            return list(self.opens) if self.text.thinking else []
        if ended_by not in self.opens:
            raise ContractError(
                f"`ended_by` must be one of {self.opens}, after which a picture follows, got {ended_by}; try "
                "to end the text with `<|im_end|>`."
            )
        return []

    def private(self, network: nn.Module, phase: str) -> Iterable[nn.Parameter]:
        """Text: the output layer and its norm. Picture: what draws, as far as no prompt brings pictures."""
        decoder = network.language_model.model
        if phase == "text":
            return (network.language_model.lm_head.weight, decoder.norm.weight)
        own = [*network.llm2vae.parameters(), decoder.norm_moe_gen.weight]
        if not self.max_images:
            own += [*network.vae2llm.parameters(), *network.time_embedder.parameters()]
            own += [weight for name, weight in decoder.layers.named_parameters() if "_moe_gen" in name]
        return tuple(own)
