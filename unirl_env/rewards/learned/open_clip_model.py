"""A frozen CLIP model of open_clip, with its preprocessing and its tokenizer."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from unirl_env.arguments.extras import needed
from unirl_env.errors import ConfigError, ModelNotFound
from unirl_env.rewards.learned.placement import Placement, not_found

PRECISIONS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


class OpenCLIPModel:
    """Unit vectors of pictures and of texts.

    Pictures are resized and normalised as the model's own configuration says, on tensors, with antialiasing;
    a picture that is not finite everywhere gives NaN. Texts are cut at the model's context length.

    Args:
        model: An architecture of `open_clip.list_models()`, `"hf-hub:owner/name"`, or
            `"local-dir:/path"`; the last two bring their weights along.
        pretrained: A tag of `open_clip.list_pretrained_tags_by_model(model)` or the path of a checkpoint;
            not used by models that bring their weights along.
        placement: Where and how it computes.
        asker: The scorer, for messages.
        resize: `[3, H, W]` to `[3, size, size]`, in place of the model's own resizing.

    Raises:
        MissingExtra: If open_clip is not installed.
        ModelNotFound: If the architecture is unknown or its weights cannot be loaded.
    """

    def __init__(
        self,
        model: str,
        pretrained: str | os.PathLike[str] | None,
        placement: Placement,
        *,
        asker: str,
        resize: Callable[[Tensor, int], Tensor] | None = None,
    ):
        self.placement = placement
        self._model, self._tokenize = _load(model, pretrained, placement, asker)
        own, self._normalise, size = _preprocessing(self._model)
        self._resize = own if resize is None else lambda image: resize(image, size)

    @torch.no_grad()
    def pictures(self, images: Sequence[Tensor]) -> Tensor:
        """`[N, D]` float32 on the model's device, of N pictures `[3, H, W]` in [0, 1] of any sizes."""
        return self._embedded(self._model.encode_image, images, self._prepared)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """`[N, D]` float32 on the model's device; a text that comes twice is encoded once."""
        row = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        tokens = list(self._tokenize(list(row)))
        rows = self._embedded(self._model.encode_text, tokens, lambda row: row.to(self.placement.device))
        return rows[[row[text] for text in texts]]

    @torch.no_grad()
    def likeness(self, images: Sequence[Tensor], texts: Sequence[str]) -> Tensor:
        """`[N]` float32, the cosine of each of N pictures with its text."""
        return (self.pictures(images) * self.texts(texts)).sum(dim=-1)

    def _prepared(self, image: Tensor) -> Tensor:
        image = image.to(self.placement.device, torch.float32)
        if not image.isfinite().all():
            # Where it is cropped away, too.
            image = torch.full_like(image, torch.nan)
        return self._normalise(self._resize(image)).to(self.placement.dtype)

    def _embedded(self, encode: Any, rows: Sequence[Tensor], prepared: Callable[[Tensor], Tensor]) -> Tensor:
        # Prepared block by block: a video has hundreds of frames.
        size = self.placement.rows_per_forward or self.placement.batch_size
        blocks = []
        for start in range(0, len(rows), size):
            block = [prepared(row) for row in rows[start : start + size]]
            blocks.append(self.placement.in_blocks(lambda x: nnf.normalize(encode(x).float(), dim=-1), block))
        return torch.cat(blocks)


def letterboxed(image: Tensor, size: int, fill: float = 0.0) -> Tensor:
    """`[3, H, W]` to `[3, size, size]`: the longer side fills it, the rest is padded on both sides."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import pad, resize

    height, width = image.shape[-2:]
    scale = size / max(height, width)
    if scale != 1:
        inner = [max(1, round(height * scale)), max(1, round(width * scale))]
        image = resize(image, inner, InterpolationMode.BICUBIC, antialias=True)
    down, right = size - image.shape[-2], size - image.shape[-1]
    return pad(image, [right // 2, down // 2, right - right // 2, down - down // 2], fill=fill)


def _load(
    model: str, pretrained: str | os.PathLike[str] | None, placement: Placement, asker: str
) -> tuple[torch.nn.Module, Any]:
    open_clip = needed("open_clip", "clip", "open_clip_torch")
    brings_weights = model.startswith(("hf-hub:", "local-dir:"))
    if not brings_weights and model not in open_clip.list_models():
        close = difflib.get_close_matches(model, open_clip.list_models(), n=3)
        raise ModelNotFound(
            f"`model` must be an architecture of open_clip, got {model!r}; try one of "
            f"{close or open_clip.list_models()[:3]}, or the reward `shapes`, which needs no model."
        )
    if not brings_weights and pretrained is None:
        raise ConfigError(
            f"`pretrained` must name weights for {model!r}, got None; "
            f"try {open_clip.list_pretrained_tags_by_model(model)[:3]} or the path of a checkpoint."
        )
    weights = None if brings_weights or pretrained is None else os.fspath(pretrained)
    tag = {} if brings_weights else open_clip.get_pretrained_cfg(model, weights)
    try:
        loaded = open_clip.create_model(
            model,
            weights,
            precision=PRECISIONS[placement.dtype],
            device=placement.device,
            # Weights that were trained with QuickGELU are wrong under GELU, and only warn about it.
            force_quick_gelu=bool(tag.get("quick_gelu", False)),
            require_pretrained=True,
        )
        tokenize = open_clip.get_tokenizer(model)
    except Exception as error:
        remedy = "the path of a local checkpoint"
        raise not_found(asker, f"{model!r} with weights {weights!r}", error, remedy) from error
    return loaded.eval().requires_grad_(False), tokenize


def _preprocessing(model: torch.nn.Module) -> tuple[Callable[[Tensor], Tensor], Any, int]:
    """The model's own evaluation transform in two halves, between which the picture is in [0, 1]."""
    import open_clip
    from torchvision.transforms import Compose

    settings = open_clip.get_model_preprocess_cfg(model)
    size = settings["size"] if isinstance(settings["size"], int) else settings["size"][0]
    chain = open_clip.image_transform(
        settings["size"],
        is_train=False,
        mean=settings["mean"],
        std=settings["std"],
        resize_mode=settings["resize_mode"],
        interpolation=settings["interpolation"],
        fill_color=settings["fill_color"],
    ).transforms
    resize = Compose(chain[:-1])
    # Bicubic interpolation overshoots at edges, where a picture file would hold 0 or 255.
    return lambda image: resize(image).clamp(0, 1), chain[-1], size
