"""Scorers to measure a reward service with: a real image tower on random weights, and one that costs nothing.

The service finds them by dotted path, with this folder on `PYTHONPATH`: `{name: "image_tower:ImageTower"}`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor

from unirl_env.rewards.inputs import check_blocks, in_blocks, picture_of
from unirl_env.types import Prompt, Sample, Scores


class ImageTower:
    """The cosine of a picture's embedding with one fixed direction.

    The work of a CLIP reward on a picture: it is resized with antialiasing as open_clip does, normalised, and
    goes through the image tower of an architecture of open_clip. Its weights are random, from `seed`.

    Args:
        model: An architecture of `open_clip.list_models()`.
        batch_size: The most pictures of one forward.
        rows_per_forward: As in `unirl_env.rewards.inputs.in_blocks`.
        seed: Of the weights and the direction.
    """

    name = "image_tower"
    needs = ("image",)
    pointwise = True

    def __init__(
        self,
        model: str = "ViT-S-32",
        *,
        batch_size: int = 32,
        rows_per_forward: int | None = None,
        seed: int = 0,
    ):
        import open_clip
        from torchvision.transforms import Compose

        check_blocks(batch_size, rows_per_forward)
        self.batch_size, self.rows_per_forward = batch_size, rows_per_forward
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            clip = open_clip.create_model(model, None).eval().requires_grad_(False)
        self._tower = clip.visual
        settings = open_clip.get_model_preprocess_cfg(clip)
        chain = open_clip.image_transform(settings["size"], is_train=False).transforms
        self._resize, self._normalise = Compose(chain[:-1]), chain[-1]
        self._direction = nnf.normalize(torch.randn(clip.visual.output_dim, generator=_keyed(seed)), dim=0)

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score the pictures `[3, H, W]` of `samples` `[B]`."""
        rows = [self._prepared(sample) for sample in samples]
        return Scores(in_blocks(self._cosines, rows, self.batch_size, self.rows_per_forward))

    def _prepared(self, sample: Sample) -> Tensor:
        return self._normalise(self._resize(picture_of(sample, self.name)).clamp(0, 1))

    def _cosines(self, pictures: Tensor) -> Tensor:
        return nnf.normalize(self._tower(pictures).float(), dim=-1) @ self._direction


class Corner:
    """The first pixel: what remains is the service's own work."""

    name = "corner"
    needs = ("image",)
    pointwise = True

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score the pictures `[3, H, W]` of `samples` `[B]`."""
        return Scores(torch.stack([picture_of(sample, self.name)[0, 0, 0] for sample in samples]))


def pictures(count: int, size: int, seed: int = 0) -> list[Tensor]:
    """Pictures `[3, size, size]` of whole 255ths: smooth with a little grain, so that PNG shrinks them."""
    made = []
    for i in range(count):
        random = _keyed(seed * 1_000_003 + i)
        coarse = torch.rand(1, 3, 12, 12, generator=random)
        smooth = nnf.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)[0]
        grain = torch.randn(3, size, size, generator=random) * 0.01
        made.append((smooth + grain).clamp(0, 1).mul(255).round().to(torch.uint8).float() / 255.0)
    return made


def _keyed(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
