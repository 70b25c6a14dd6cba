"""How much people like the look of a picture: LAION's aesthetic predictor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from unirl_env.arguments.copies import FromArguments
from unirl_env.arguments.signatures import PassesOptions
from unirl_env.errors import ModelNotFound
from unirl_env.rewards.inputs import picture_of
from unirl_env.rewards.learned.open_clip_model import OpenCLIPModel
from unirl_env.rewards.learned.placement import Placement, hub_file, load_tensors
from unirl_env.types import Prompt, Sample, Scores

REPOSITORY = "camenduru/improved-aesthetic-predictor"
FILE = "sac+logos+ava1-l14-linearMSE.pth"
WIDTHS = (1024, 128, 64, 16, 1)
PLACES = (0, 2, 4, 6, 7)
"""Of the linear layers in the published sequence, which has dropouts at 1, 3 and 5 and no other functions."""


class AestheticScore(PassesOptions, FromArguments, passes_to=Placement):
    """A rating of the picture alone, about 1 to 10: five linear layers on CLIP's unit vector.

    The head is the one trained on SAC, Logos and AVA, over CLIP ViT-L/14 of OpenAI; most pictures rate 4 to
    7. Its layers compute in float32. It never looks at the prompt: a policy that draws the same pretty
    picture for all does well by it, so weigh it with a reward of the prompt.

    A picture that is not finite everywhere is invalid. The gradient does not flow.

    Args:
        head: The path of a local copy of the head, with the tensors `layers.0.weight` and so on, as
            safetensors or by `torch.save`; by default it comes from the hub.
        repository: The repository of the hub that has the head. The author publishes it on GitHub
            (christophschuhmann/improved-aesthetic-predictor); the default is a copy of that.
        file: Its name there.
        model: An architecture of open_clip, `"hf-hub:owner/name"` or `"local-dir:/path"`.
        pretrained: A tag of its weights, or the path of a checkpoint.
        scale: What the rating is multiplied by.
        **network: Where and how CLIP computes; see `Placement`.

    Raises:
        MissingExtra: If open_clip is not installed.
        ConfigError: If a setting is out of range.
        ModelNotFound: If the head or CLIP cannot be loaded, or they do not fit each other.

    Reference:
        Schuhmann 2022, improved-aesthetic-predictor; Schuhmann et al. 2022 (LAION-5B), arXiv:2210.08402; the
        reward of Black et al. 2023 (DDPO), arXiv:2305.13301.
    """

    name = "aesthetic"
    needs = ("image",)
    pointwise = True

    def __init__(
        self,
        head: str | os.PathLike[str] | None = None,
        *,
        repository: str = REPOSITORY,
        file: str = FILE,
        model: str = "ViT-L-14",
        pretrained: str | os.PathLike[str] | None = "openai",
        scale: float = 1.0,
        **network: Any,
    ):
        self.scale = float(scale)
        placement = Placement(**network)
        self._model = OpenCLIPModel(model, pretrained, placement, asker="AestheticScore")
        if head is None:
            head = hub_file(repository, file, asker="AestheticScore", option="head")
        self._head, width = _loaded_head(head)
        self._head.to(placement.device)
        given = self._model.pictures([torch.zeros(3, 8, 8)]).shape[1]
        if given != width:
            raise ModelNotFound(
                f"`head` must take vectors of width {given}, as `model` gives them, got one for {width}; "
                f"try model='ViT-L-14' with the published head."
            )

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Rate the picture of every sample.

        Raises:
            ContractError: If a sample has no picture `[3, H, W]`.
        """
        image = self._model.pictures([picture_of(sample, self.name) for sample in samples])
        rated = self._model.placement.in_blocks(self._head, list(image))
        return Scores(value=self.scale * rated[:, 0])


def _loaded_head(path: str | os.PathLike[str]) -> tuple[nn.Module, int]:
    """The head, and the width of what it takes."""
    tensors = load_tensors(path, asker="AestheticScore")
    first = tensors.get("layers.0.weight")
    width = first.shape[1] if first is not None and first.ndim == 2 else 0
    expected: dict[str, tuple[int, ...]] = {}
    for place, before, after in zip(PLACES, (width, *WIDTHS), WIDTHS, strict=False):
        expected[f"layers.{place}.weight"] = (after, before)
        expected[f"layers.{place}.bias"] = (after,)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if not width or found != expected:
        raise ModelNotFound(
            f"`AestheticScore` must find the tensors {list(expected)} of the published shapes in "
            f"{os.fspath(path)!r}, got {found}; try {FILE!r} of {REPOSITORY!r}."
        )
    layers = []
    for place, before, after in zip(PLACES, (width, *WIDTHS), WIDTHS, strict=False):
        layer = nn.Linear(before, after)
        layer.load_state_dict({part: tensors[f"layers.{place}.{part}"] for part in ("weight", "bias")})
        layers.append(layer)
    # Dropouts do nothing here, and a head that was saved in half precision computes in float32.
    return nn.Sequential(*layers).float().eval().requires_grad_(False), width
