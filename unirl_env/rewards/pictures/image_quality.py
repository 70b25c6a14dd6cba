"""Properties of a picture that need no model: how well it compresses, how sharp and how colourful it is."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unirl_env.arguments.values import is_number, is_whole, require
from unirl_env.errors import ConfigError, ScorerError
from unirl_env.rewards.inputs import picture_of
from unirl_env.types import Prompt, Sample, Scores

DIRECTIONS = {"compressible": -1.0, "incompressible": 1.0}
MEASURES = ("hsv", "hsl", "chroma")
LUMA = (0.299, 0.587, 0.114)


class JPEGScorer:
    """The size of the picture as a JPEG file.

    A reward that is cheap, deterministic and easily raised by a policy that learns: the first one to try on a
    new model. Compressible pictures lose their background, incompressible ones gain texture.

    The parts are `kilobytes` (of 1000 bytes) and `bits_per_pixel`.

    Args:
        direction: `"compressible"`, minus the size, or `"incompressible"`, the size.
        quality: Of the JPEG, 1 to 95.
        per_pixel: Count bits per pixel, which compare over pictures of several sizes, not kilobytes.

    Raises:
        ConfigError: If a setting is out of range.

    Reference:
        Black et al. 2023 (DDPO), arXiv:2305.13301, section 5.2: kilobytes at quality 95 of pictures of
        512 x 512 pixels.
    """

    name = "jpeg"
    needs = ("image",)
    pointwise = True

    def __init__(self, direction: str = "compressible", *, quality: int = 95, per_pixel: bool = False):
        require("direction", direction, direction in DIRECTIONS, f"one of {list(DIRECTIONS)}")
        if not is_whole(quality) or not 1 <= quality <= 95:
            raise ConfigError(f"`quality` must be a whole number from 1 to 95, got {quality!r}; try 95.")
        self.sign, self.quality, self.per_pixel = DIRECTIONS[direction], quality, bool(per_pixel)

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score the picture of every sample.

        Raises:
            ContractError: If a sample has no picture `[3, H, W]`.
        """
        kilobytes = _each(samples, self.name, lambda picture: self._bytes(picture) / 1000)
        pixels = torch.tensor([picture_of(sample, self.name)[0].numel() for sample in samples])
        bits = kilobytes * 8000 / pixels
        return Scores(
            value=self.sign * (bits if self.per_pixel else kilobytes),
            parts={"kilobytes": kilobytes, "bits_per_pixel": bits},
        )

    def _bytes(self, picture: Tensor) -> int:
        from PIL import Image

        levels = picture.mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
        stream = io.BytesIO()
        Image.fromarray(levels.numpy()).save(stream, "JPEG", quality=self.quality)
        return stream.tell()


class SharpnessScorer:
    """How sharp a picture is: `v / (v + half)` of the variance `v` of its Laplacian, in [0, 1).

    The Laplacian is that of the four neighbours, over the luma (Rec. 601, in [0, 1]) of all pixels that have
    four. Its variance is 0 for flat pictures and even slopes, and 16 for a checkerboard of black and white
    pixels. Noise is sharp, too: alone it rewards noise, beside a reward of content it keeps pictures from
    blurring. The variance is the part `variance`.

    Args:
        half: The variance that scores 0.5. The default is the 100 at 255 grey levels below which photographs
            are commonly called blurred.
        raw: Score the variance itself.

    Raises:
        ConfigError: If `half` is not positive.

    Reference:
        Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy: a comparative study".
    """

    name = "sharpness"
    needs = ("image",)
    pointwise = True

    def __init__(self, *, half: float = 100 / 255**2, raw: bool = False):
        require("half", half, is_number(half) and half > 0, "a positive number", "try 0.0015")
        self.half, self.raw = float(half), bool(raw)

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score the picture of every sample.

        Raises:
            ContractError: If a sample has no picture `[3, H, W]`.
            ScorerError: If a picture has less than 3 x 3 pixels.
        """
        variance = _each(samples, self.name, _laplacian_variance)
        value = variance if self.raw else variance / (variance + self.half)
        return Scores(value=value, parts={"variance": variance})


class SaturationScorer:
    """How colourful a picture is: the mean saturation of its pixels, in [0, 1].

    `hsv` is `(max - min) / max` of the three channels, `hsl` is `(max - min) / (1 - |max + min - 1|)`, and
    `chroma` is `max - min`. Only the last one is small for all dark pixels: by the other two, the noise of a
    nearly black picture is saturated. The mean is the part `saturation`.

    Args:
        measure: `"hsv"`, `"hsl"` or `"chroma"`.
        target: The mean that scores 1; the score falls in a straight line to 0 at the mean that is furthest
            from it. By default the score is the mean itself.

    Raises:
        ConfigError: If a setting is out of range.
    """

    name = "saturation"
    needs = ("image",)
    pointwise = True

    def __init__(self, *, measure: str = "hsv", target: float | None = None):
        require("measure", measure, measure in MEASURES, f"one of {list(MEASURES)}")
        if target is not None and not (is_number(target) and 0 <= target <= 1):
            raise ConfigError(f"`target` must be a number in [0, 1], got {target!r}; try 0.4.")
        self.measure, self.target = measure, target

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score the picture of every sample.

        Raises:
            ContractError: If a sample has no picture `[3, H, W]`.
        """
        mean = _each(samples, self.name, self._mean)
        value = mean
        if self.target is not None:
            value = 1 - (mean - self.target).abs() / max(self.target, 1 - self.target)
        return Scores(value=value, parts={"saturation": mean})

    def _mean(self, picture: Tensor) -> float:
        high, low = picture.amax(0), picture.amin(0)
        chroma = high - low
        if self.measure == "hsv":
            chroma = chroma / high.clamp_min(1e-12)
        elif self.measure == "hsl":
            chroma = chroma / (1 - (high + low - 1).abs()).clamp_min(1e-12)
        return chroma.clamp(0, 1).mean().item()


def _each(samples: Sequence[Sample], name: str, measure: Callable[[Tensor], float]) -> Tensor:
    """`measure` of every picture, `[B]` float64; NaN where one is not finite."""
    found = []
    for sample in samples:
        picture = picture_of(sample, name).detach().to("cpu", torch.float64)
        found.append(measure(picture.clamp(0, 1)) if bool(picture.isfinite().all()) else math.nan)
    return torch.tensor(found, dtype=torch.float64)


def _laplacian_variance(picture: Tensor) -> float:
    if min(picture.shape[1:]) < 3:
        raise ScorerError(
            f"`Sample.image` must have at least 3 x 3 pixels for the reward `sharpness`, got "
            f"{list(picture.shape)}."
        )
    grey = sum(weight * channel for weight, channel in zip(LUMA, picture, strict=True))
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return (around - 4 * grey[1:-1, 1:-1]).var(correction=0).item()
