"""How well a picture fits its prompt, by a CLIP model of open_clip."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from unirl_env.arguments.copies import FromArguments
from unirl_env.arguments.signatures import PassesOptions
from unirl_env.rewards.inputs import picture_of
from unirl_env.rewards.learned.open_clip_model import OpenCLIPModel
from unirl_env.rewards.learned.placement import Placement
from unirl_env.types import Prompt, Sample, Scores


class CLIPScore(PassesOptions, FromArguments, passes_to=Placement):
    """`scale * cos(image embedding, text embedding)`.

    Pictures are resized and normalised as the model's own configuration says (on tensors, with antialiasing),
    texts are cut at the model's context length. Cosines are taken in float32. The gradient does not flow.

    Args:
        model: An architecture of `open_clip.list_models()`, `"hf-hub:owner/name"`, or
            `"local-dir:/path"`; the last two bring their weights along.
        pretrained: A tag of `open_clip.list_pretrained_tags_by_model(model)` or the path of a checkpoint;
            not used by models that bring their weights along.
        scale: What the cosine is multiplied by.
        **network: Where and how the model computes; see `Placement`.

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
        pretrained: str | os.PathLike[str] | None = "openai",
        *,
        scale: float = 1.0,
        **network: Any,
    ):
        self.scale = float(scale)
        self._model = OpenCLIPModel(model, pretrained, Placement(**network), asker="CLIPScore")

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score the picture of every sample against the text of its prompt.

        Raises:
            ContractError: If a sample has no picture `[3, H, W]`.
        """
        pictures = [picture_of(sample, self.name) for sample in samples]
        return Scores(self.scale * self._model.likeness(pictures, [prompt.text for prompt in prompts]))
