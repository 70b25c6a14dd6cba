"""Human preference: HPS v2 and v2.1."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from unirl_env.arguments.copies import FromArguments
from unirl_env.arguments.signatures import PassesOptions
from unirl_env.arguments.values import require
from unirl_env.rewards.inputs import picture_of
from unirl_env.rewards.learned.open_clip_model import OpenCLIPModel, letterboxed
from unirl_env.rewards.learned.placement import Placement, hub_file
from unirl_env.types import Prompt, Sample, Scores

REPOSITORY = "xswu/HPSv2"
FILES = {"v2": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}


class HPSv2Score(PassesOptions, FromArguments, passes_to=Placement):
    """`scale * cos(image embedding, text embedding)`, of a CLIP ViT-H/14 trained on people's rankings.

    The numbers are those of the package `hpsv2`: its checkpoint in the same architecture, the same tokens
    (lower case, cut at 77), and the same preprocessing, which for pictures is not the one of `clip`: the
    longer side is resized to 224 (bicubic, with antialiasing, not clamped) and the rest is black, then the
    means and deviations of OpenAI's CLIP. On a GPU that package computes in mixed precision, and this in
    `dtype`. Published scores lie about 0.20 to 0.35; papers often give them times 100.

    A picture that is not finite everywhere is invalid. A text that comes twice is encoded once. The gradient
    does not flow.

    Args:
        version: `"v2"` or `"v2.1"`.
        checkpoint: The path of a local copy of the version's checkpoint, `{"state_dict": ...}`; by default
            it comes from the hub, `xswu/HPSv2`.
        model: The architecture of the checkpoint, of `open_clip.list_models()`.
        scale: What the cosine is multiplied by.
        **network: Where and how the model computes; see `Placement`.

    Raises:
        MissingExtra: If open_clip is not installed.
        ConfigError: If a setting is out of range.
        ModelNotFound: If the checkpoint cannot be had, or does not fit the architecture.

    Reference:
        Wu et al. 2023, arXiv:2306.09341, equation 1 without its temperature.
    """

    name = "hpsv2"
    needs = ("image",)
    pointwise = True

    def __init__(
        self,
        version: str = "v2.1",
        checkpoint: str | os.PathLike[str] | None = None,
        *,
        model: str = "ViT-H-14",
        scale: float = 1.0,
        **network: Any,
    ):
        require("version", version, version in FILES, f"one of {list(FILES)}")
        self.scale = float(scale)
        if checkpoint is None:
            checkpoint = hub_file(REPOSITORY, FILES[version], asker="HPSv2Score", option="checkpoint")
        self._model = OpenCLIPModel(
            model, checkpoint, Placement(**network), asker="HPSv2Score", resize=letterboxed
        )

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score the picture of every sample against the text of its prompt.

        Raises:
            ContractError: If a sample has no picture `[3, H, W]`.
        """
        pictures = [picture_of(sample, self.name) for sample in samples]
        return Scores(self.scale * self._model.likeness(pictures, [prompt.text for prompt in prompts]))
