"""Pictures of a prompt, as BAGEL takes them in: once as they are drawn and once as they are seen."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from unirl_env.errors import PromptError
from unirl_env.media.pixels import load_picture, picture_digest
from unirl_env.models.bagel.flux import LATENT_WIDTH, PATCH, Autoencoder, parted
from unirl_env.models.bagel.published import VisionSizes
from unirl_env.types import Prompt

SHORTEST = 224
"""Pixels that the vision tower wants of a picture's shorter side."""
SKEW = 0.05
"""How far the aspect ratio of a picture may lie from that of what is drawn."""
KEPT = 32


class PromptPictures:
    """Scales pictures to the size that is drawn, and makes them two grids of patches each.

    The first grid is the latent, `[rows * columns, 64]`, filled up with zeros to the width of the second, the
    patches of the vision tower. Read by `BagelNetwork.hidden` in turn.

    Args:
        autoencoder: Makes the latents.
        vision: Sizes of the vision tower.
        height: Pixels of what is drawn.
        width: Pixels.
    """

    def __init__(self, autoencoder: Autoencoder, vision: VisionSizes, *, height: int, width: int):
        self._autoencoder, self._vision = autoencoder, vision
        self.height, self.width = height, width
        self.seen = seen_size(height, width, vision)
        self.row = max(LATENT_WIDTH, 3 * vision.patch**2)
        drawn = (height // (8 * PATCH), width // (8 * PATCH))
        self.grids = (drawn, (self.seen[0] // vision.patch, self.seen[1] // vision.patch))
        self.tokens = [rows * columns for rows, columns in self.grids]
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def inputs(self, prompt: Prompt) -> dict[str, Tensor]:
        """`pixel_values` `[n, row]` float32 and `image_grid_thw` `[2 * pictures, 3]` of a prompt's pictures.

        Raises:
            PromptError: If a picture cannot be read, or is of another shape than what is drawn.
        """
        if not prompt.images:
            return {}
        grid = [[1, *grid] for grid in self.grids] * len(prompt.images)
        patches = [self._patches(source, prompt) for source in prompt.images]
        return {"pixel_values": torch.cat(patches), "image_grid_thw": torch.tensor(grid)}

    def _patches(self, source: Any, prompt: Prompt) -> Tensor:
        """`[n, row]` of one picture."""
        key = picture_digest(source)
        if key not in self._kept:
            picture = load_picture(source)
            self._check(picture, prompt)
            picture = _scaled(picture, self.height, self.width)
            latent, _ = parted(self._autoencoder.encode(picture)[None])
            patches, _ = parted((_scaled(picture, *self.seen) * 2 - 1)[None], self._vision.patch)
            self._kept[key] = torch.cat(
                [nnf.pad(part[0], (0, self.row - part.shape[2])) for part in (latent, patches)]
            )
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]

    def _check(self, picture: Tensor, prompt: Prompt) -> None:
        height, width = picture.shape[1:]
        if abs(height * self.width / (width * self.height) - 1) > SKEW:
            raise PromptError(
                f"A picture must have the aspect ratio of what is drawn, {self.width} x {self.height}, got "
                f"{width} x {height} in {prompt.id[:60]!r}; try to crop it, or another `height` and `width`."
            )


def seen_size(height: int, width: int, vision: VisionSizes) -> tuple[int, int]:
    """Height and width at which the vision tower sees a picture: multiples of its patches."""
    most = vision.side * vision.patch

    def scaled(height: int, width: int, scale: float) -> tuple[int, int]:
        sides = (round(side * scale) / vision.patch for side in (height, width))
        rows, columns = (max(1, round(side)) for side in sides)
        return rows * vision.patch, columns * vision.patch

    scale = max(min(most / max(height, width), 1.0), SHORTEST / min(height, width))
    height, width = scaled(height, width, scale)
    if max(height, width) > most:
        height, width = scaled(height, width, most / max(height, width))
    return height, width


def grid_positions(width: int, grids: Tensor, before: Sequence[int] | int) -> Tensor:
    """Positions `[P, width]` int64 of prompts whose pictures stand together.

    The tokens of a picture, with the two around them, share one position.

    Args:
        width: Tokens of the longest.
        grids: `[P, n, 3]` int64 of all pictures of a prompt; zeros where it has fewer.
        before: Tokens before the first picture.
    """
    place = torch.arange(width, device=grids.device)
    counts = grids.prod(-1)
    blocks = torch.where(counts > 0, counts + 2, 0)
    ends = before + blocks.cumsum(1)
    starts = ends - blocks
    inside = (place > starts[..., None]) & (place < ends[..., None])
    return (~inside.any(1)).long().cumsum(1) - 1


def _scaled(picture: Tensor, height: int, width: int) -> Tensor:
    """A picture `[3, height, width]` in 256 steps from 0 to 1, scaled as Pillow scales by cubics."""
    from PIL import Image

    pixels = (picture * 255).round().to(torch.uint8)
    if picture.shape[1:] != (height, width):
        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        pixels = pixels.view(height, width, 3).permute(2, 0, 1)
    return pixels.float() / 255
