"""How well a picture fits its prompt, by a CLIP model of open_clip."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from unirl_env.errors import ConfigError, ContractError, MissingExtra, ModelNotFound
from unirl_env.types import Prompt, Sample, Scores

__all__ = ["CLIPScore"]

PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


class CLIPScore:
    """`scale * cos(image embedding, text embedding)`.

    Pictures are resized and normalised as the model's own configuration says (on tensors, with antialiasing),
    texts are cut at the model's context length. Cosines are taken in float32. The gradient does not flow.

    Args:
        model: An architecture of `open_clip.list_models()`, `"hf-hub:owner/name"`, or
            `"local-dir:/path"`; the last two bring their weights along.
        pretrained: A tag of `open_clip.list_pretrained_tags_by_model(model)` or the path of a checkpoint;
            not used by models that bring their weights along.
        device: Where the model computes.
        dtype: `"float32"`, `"float16"` or `"bfloat16"`, of the model's weights.
        batch_size: The most pictures or texts that go through the model at once.
        scale: What the cosine is multiplied by.

    Raises:
        MissingExtra: If open_clip is not installed.
        ConfigError: If a setting is out of range.
        ModelNotFound: If the architecture is unknown or its weights cannot be loaded.

    Reference:
        Radford et al. 2021, arXiv:2103.00020; Hessel et al. 2021 (CLIPScore), arXiv:2104.08718, whose
        `2.5 * max(cos, 0)` this is for `scale=2.5` wherever the cosine is positive.
    """

    name = "clip"
    needs = ("image",)
    pointwise = True

    def __init__(
        self,
        model: str = "ViT-L-14",
        pretrained: str | os.PathLike | None = "openai",
        *,
        device: str | torch.device = "cpu",
        dtype: str = "float32",
        batch_size: int = 64,
        scale: float = 1.0,
    ):
        if dtype not in PRECISIONS:
            raise ConfigError(f"`dtype` must be one of {list(PRECISIONS)}, got {dtype!r}.")
        if batch_size < 1:
            raise ConfigError(f"`batch_size` must be at least 1, got {batch_size}.")
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.scale = float(scale)
        self._input_dtype = getattr(torch, dtype)
        self._model, self._tokenize = _load(model, pretrained, PRECISIONS[dtype], self.device)
        self._resize, self._normalise = _preprocessing(self._model)

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score the picture of every sample against the text of its prompt.

        Raises:
            ContractError: If a sample has no picture `[3, H, W]`.
        """
        pictures = [self._prepared(sample) for sample in samples]
        texts = {prompt.text: None for prompt in prompts}
        row = {text: i for i, text in enumerate(texts)}
        image = self._embedded(self._model.encode_image, pictures)
        text = self._embedded(self._model.encode_text, list(self._tokenize(list(texts))))
        chosen = text[[row[prompt.text] for prompt in prompts]]
        return Scores(value=self.scale * (image * chosen).sum(dim=-1))

    def _prepared(self, sample: Sample) -> Tensor:
        """The picture as the model wants it, `[3, h, w]`."""
        image = sample.image
        if image is None or image.ndim != 3 or image.shape[0] != 3:
            got = None if image is None else list(image.shape)
            raise ContractError(f"`Sample.image` must be [3, H, W] for the CLIP score, got {got}.")
        image = self._resize(image.to(self.device, torch.float32))
        # Bicubic interpolation overshoots at edges, where a picture file would hold 0 or 255.
        return self._normalise(image.clamp(0, 1)).to(self._input_dtype)

    def _embedded(self, encode: Any, rows: list[Tensor]) -> Tensor:
        """Unit vectors `[len(rows), D]` float32."""
        blocks = []
        for start in range(0, len(rows), self.batch_size):
            block = torch.stack(rows[start : start + self.batch_size]).to(self.device)
            blocks.append(nnf.normalize(encode(block).float(), dim=-1))
        return torch.cat(blocks)


def _load(
    model: str, pretrained: str | os.PathLike | None, precision: str, device: torch.device
) -> tuple[torch.nn.Module, Any]:
    try:
        import open_clip
    except ImportError as error:
        raise MissingExtra("open_clip_torch", "clip") from error
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
    weights = None if brings_weights else os.fspath(pretrained)
    tag = {} if brings_weights else open_clip.get_pretrained_cfg(model, weights)
    try:
        loaded = open_clip.create_model(
            model,
            weights,
            precision=precision,
            device=device,
            # Weights that were trained with QuickGELU are wrong under GELU, and only warn about it.
            force_quick_gelu=bool(tag.get("quick_gelu", False)),
            require_pretrained=True,
        )
        tokenize = open_clip.get_tokenizer(model)
    except Exception as error:
        raise ModelNotFound(
            f"`CLIPScore` must find {model!r} with weights {weights!r}, got {type(error).__name__}: {error}; "
            f"try the path of a local checkpoint, or the reward `shapes`, which needs no download."
        ) from error
    return loaded.eval().requires_grad_(False), tokenize


def _preprocessing(model: torch.nn.Module) -> tuple[Any, Any]:
    """The model's own evaluation transform in two halves, between which the picture is in [0, 1]."""
    import open_clip
    from torchvision.transforms import Compose

    settings = open_clip.get_model_preprocess_cfg(model)
    chain = open_clip.image_transform(
        settings["size"],
        is_train=False,
        mean=settings["mean"],
        std=settings["std"],
        resize_mode=settings["resize_mode"],
        interpolation=settings["interpolation"],
        fill_color=settings["fill_color"],
    ).transforms
    return Compose(chain[:-1]), chain[-1]
