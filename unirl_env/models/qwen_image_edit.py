"""Qwen-Image-Edit: pictures of a text and of pictures, whose tokens stand behind the latent's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from unirl_env.arguments.values import whole
from unirl_env.errors import PromptError
from unirl_env.media.pixels import load_picture, to_pil
from unirl_env.models.qwen_image import PATCH, QwenImageDenoiser
from unirl_env.models.shared.unequal import padded_texts
from unirl_env.types import Prompt

ONE, SEVERAL = "QwenImageEditPipeline", "QwenImageEditPlusPipeline"
SLENDER = 4
"""How many times as long as wide a picture may be, for which observations have room."""


class QwenImageEditDenoiser(QwenImageDenoiser):
    """Qwen-Image-Edit of one picture, and Qwen-Image-Edit-Plus of several, by the checkpoint's pipeline.

    A prompt's pictures (`Prompt.images`) are scaled to one area whatever their size, as the pipeline does,
    and keep their aspect; prompts whose pictures have other shapes are read apart. `max_sequence_length`
    counts pictures, too, and nothing is cut.

    Args:
        pretrained: A hub id or a directory.
        max_images: The most pictures of one prompt; 1 unless the pipeline takes several.
        image_pixels: The area in pixels that each is scaled to before it is encoded; the pipelines' own is
            1024 x 1024, which is 4096 tokens.
        **options: Those of `QwenImageDenoiser`.

    Raises:
        ConfigError: If several pictures are asked of a pipeline that takes one.
    """

    family, pipeline = "Qwen-Image-Edit", ONE
    length, longest, uneven = 2048, None, "prompts with pictures of other shapes are read apart"

    def __init__(
        self, pretrained: str, *, max_images: int = 1, image_pixels: int = 1024 * 1024, **options: Any
    ):
        super().__init__(pretrained, **options)
        self.image_pixels = whole("image_pixels", image_pixels, 64 * 64)
        most = None if self.pipeline == SEVERAL else 1
        hint = f"a {ONE} takes one; try a checkpoint of a {SEVERAL}"
        self.max_images = whole("max_images", max_images, 1, most, hint=hint)
        # Each side is rounded to 32 pixels, which makes the most slender picture larger by this.
        rounded = 16 * (SLENDER + 1) * (self.image_pixels / SLENDER) ** 0.5 + 16**2
        self.image_tokens = self.max_images * int((self.image_pixels + rounded) / self._unit**2)

    def _require_pipeline(self) -> None:
        if self._index.get("_class_name") == SEVERAL:
            self.pipeline = SEVERAL  # type: ignore[misc]  # the checkpoint says which
        super()._require_pipeline()

    def check_prompt(self, prompt: Prompt) -> None:
        """Refuse a prompt without a picture, or with too many."""
        if not 1 <= len(prompt.images) <= self.max_images:
            raise PromptError(
                f"A prompt must bring 1 to {self.max_images} pictures to edit, got {len(prompt.images)} in "
                f"{prompt.id[:60]!r}; try `images` of that number, or another `max_images`."
            )

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt], *, negative: bool = False) -> dict[str, Tensor]:
        """What the text encoder says of texts and pictures, and the pictures' latents, each `[B, ...]`."""
        rows = [self._of(prompt, prompt.negative if negative else prompt.text) for prompt in prompts]
        self._offload_again()
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _of(self, prompt: Prompt, text: str) -> dict[str, Tensor]:
        self.check_prompt(prompt)
        pipeline, pixels, shown, grids = self.frozen, [], [], []
        module: Any = import_module(type(pipeline).__module__)
        for picture in (to_pil(load_picture(source)) for source in prompt.images):
            aspect = picture.width / picture.height
            if not 1 / SLENDER <= aspect <= SLENDER:
                raise PromptError(
                    f"A picture must be at most {SLENDER} times as long as wide, got {picture.width} x "
                    f"{picture.height} in {prompt.id[:60]!r}; try a part of it."
                )
            width, height, *_ = module.calculate_dimensions(self.image_pixels, aspect)
            pixels.append(pipeline.image_processor.preprocess(picture, height, width).unsqueeze(2))
            grids.append((height // self._unit, width // self._unit))
            if self.pipeline == SEVERAL:
                width, height, *_ = module.calculate_dimensions(module.CONDITION_IMAGE_SIZE, aspect)
            shown.append(pipeline.image_processor.resize(picture, height, width))
        several = self.pipeline == SEVERAL
        embeds, mask = pipeline.encode_prompt(
            prompt=[text], image=shown if several else shown[0], device=self.device
        )
        none_drawn = embeds.new_zeros(1, *self.latent_shape)
        sizes = (1, self.latent_shape[1] // PATCH**2, self.height, self.width)
        given, place = pixels if several else pixels[0], (embeds.dtype, self.device, None)
        _, latents = pipeline.prepare_latents(given, *sizes, *place, latents=none_drawn)
        if embeds.shape[1] > self.max_sequence_length:
            raise PromptError(
                f"A prompt must have at most {self.max_sequence_length} tokens with its pictures, got "
                f"{embeds.shape[1]} in {prompt.id[:60]!r}; try a larger `max_sequence_length`."
            )
        return {
            **padded_texts(embeds, mask, self.max_sequence_length),
            "image_latents": pad(latents, (0, 0, 0, self.image_tokens - latents.shape[1])),
            "image_sizes": pad(torch.tensor(grids), (0, 0, 0, self.max_images - len(grids)))[None],
        }

    def _kinds(self, context: Mapping[str, Tensor]) -> Tensor:
        return context["image_sizes"].flatten(1)

    def _beside(self, context: Mapping[str, Tensor]) -> tuple[list[Tensor], list[tuple[int, ...]]]:
        sizes = [(1, *size) for size in context["image_sizes"][0].tolist() if size[0]]
        count = sum(height * width for _, height, width in sizes)
        return [context["image_latents"][:, :count].to(self.dtype)], sizes
