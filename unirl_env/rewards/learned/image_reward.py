"""How much people would like a picture for its prompt, by ImageReward."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unirl_env.arguments.copies import FromArguments
from unirl_env.arguments.signatures import PassesOptions
from unirl_env.arguments.values import is_number, require
from unirl_env.errors import ModelNotFound
from unirl_env.errors.quiet import quiet_loading
from unirl_env.media.pixels import to_pil
from unirl_env.rewards.inputs import picture_of
from unirl_env.rewards.learned.image_reward_weights import load_network
from unirl_env.rewards.learned.placement import Placement, load_tensors
from unirl_env.rewards.scoring import place_scores
from unirl_env.types import Prompt, Sample, Scores

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the network's output over the pairs that it was trained on."""
LENGTH = 35
"""Tokens of a text, cut or padded."""
ADDED = ("[DEC]", "[ENC]")
"""Tokens that BLIP adds to BERT's 30522; a text holds them only by writing them out."""
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FILES = ("ImageReward.safetensors", "ImageReward.pt")


class ImageRewardScore(PassesOptions, FromArguments, passes_to=Placement):
    """`scale * (network(picture, text) - mean) / std`, by and large from -2 to 2.

    A BERT reads the prompt while it looks, by cross attention, at what a vision transformer makes of the
    picture. As in the published code, pictures are rounded to 8 bits, resized to 224 pixels by Pillow
    (bicubic, shorter side) and cut to their middle, and texts to 35 tokens: a longer prompt is judged by its
    beginning. A picture that is not finite is invalid.

    Args:
        model: A hub id, or a directory, with `ImageReward.pt` (or `ImageReward.safetensors`) and
            `med_config.json`.
        revision: Branch, tag or commit of the hub repository.
        tokenizer: A hub id or directory of the BERT tokenizer.
        batch_size: The most pairs that go through the model at once.
        scale: What the score is multiplied by.
        **network: Where and how the two transformers compute (the head does in float32); see `Placement`.

    Raises:
        ConfigError: If a setting is out of range.
        ModelNotFound: If weights or tokenizer cannot be loaded, or do not fit.

    Reference:
        Xu et al. 2023 (ImageReward), arXiv:2304.05977, section 3; Li et al. 2022 (BLIP), arXiv:2201.12086.
    """

    name = "image_reward"
    needs = ("image",)
    pointwise = True

    def __init__(
        self,
        model: str = "zai-org/ImageReward",
        *,
        revision: str | None = None,
        tokenizer: str = "bert-base-uncased",
        batch_size: int = 32,
        scale: float = 1.0,
        **network: Any,
    ):
        require("scale", scale, is_number(scale), "a finite number")
        self.placement, self.scale = Placement(batch_size=batch_size, **network), float(scale)
        state, text = _published(str(model), revision)
        try:
            self._network = load_network(state, text, dtype=self.placement.dtype).to(self.placement.device)
        except ValueError as error:
            raise _not_found(str(model), str(error)) from error
        self._tokenizer = _tokenizer(str(tokenizer), text["vocab_size"])
        self._preprocess = _preprocessing(self._network.side)

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score the picture of every sample for the text of its prompt.

        Raises:
            ContractError: If a sample has no picture `[3, H, W]`.
        """
        pictures = [picture_of(sample, self.name) for sample in samples]
        sound = torch.tensor([bool(picture.isfinite().all()) for picture in pictures], dtype=torch.bool)
        rows = sound.nonzero().flatten().tolist()
        if not rows:
            return Scores.failed(len(samples))
        pixels = torch.stack([self._preprocess(to_pil(pictures[row])) for row in rows])
        read = self._tokenizer(
            [prompts[row].text for row in rows],
            padding="max_length",
            truncation=True,
            max_length=LENGTH,
            return_tensors="pt",
        )

        def compute(index: Tensor) -> Tensor:
            return self._network(
                pixels[index].to(self.placement.device, self.placement.dtype),
                read["input_ids"][index].to(self.placement.device),
                read["attention_mask"][index].to(self.placement.device),
            ).cpu()

        raw = self.placement.in_blocks(compute, list(torch.arange(len(rows))))
        return place_scores(Scores(self.scale * (raw - MEAN) / STD), sound)


def _preprocessing(side: int) -> Any:
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    resize = Resize(side, interpolation=InterpolationMode.BICUBIC)
    return Compose([resize, CenterCrop(side), ToTensor(), Normalize(PIXEL_MEAN, PIXEL_STD)])


@quiet_loading()
def _tokenizer(name: str, vocabulary: int) -> Any:
    from transformers import BertTokenizer

    try:
        tokenizer = BertTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise ModelNotFound(
            f"`tokenizer` must be a hub id or directory of a BERT tokenizer, got {name!r}: {error}; try a "
            "directory with the `vocab.txt` of `bert-base-uncased`."
        ) from error
    tokenizer.add_tokens(list(ADDED), special_tokens=True)
    if len(tokenizer) != vocabulary:
        raise ModelNotFound(
            f"`tokenizer` must have {vocabulary} tokens with {' and '.join(ADDED)}, got {len(tokenizer)} in "
            f"{name!r}; try `bert-base-uncased`."
        )
    return tokenizer


def _published(model: str, revision: str | None) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """The state dict and the sizes of the text encoder."""
    try:
        folder = Path(model)
        if not folder.is_dir():
            from huggingface_hub import hf_hub_download

            sizes: str | Path = hf_hub_download(model, "med_config.json", revision=revision)
            weights: str | Path = hf_hub_download(model, FILES[-1], revision=revision)
        else:
            sizes = folder / "med_config.json"
            weights = next((folder / name for name in FILES if (folder / name).is_file()), folder / FILES[-1])
        text = json.loads(Path(sizes).read_text(encoding="utf-8"))
        if not isinstance(text, dict):
            raise ValueError("med_config.json holds no sizes")
    except (OSError, ValueError) as error:
        raise _not_found(model, f"{type(error).__name__}: {error}") from error
    return load_tensors(weights, asker=ImageRewardScore.name), text


def _not_found(model: str, cause: str) -> ModelNotFound:
    return ModelNotFound(
        f"`model` must be a hub id or directory of ImageReward, got {model!r}: {cause.rstrip('.')}; try a "
        f"directory with {FILES[-1]!r} and 'med_config.json', or the reward `shapes`, which needs no model."
    )
