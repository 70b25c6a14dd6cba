"""Names for the colours of detected objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unirl_env.arguments.signatures import PassesOptions
from unirl_env.arguments.values import require
from unirl_env.errors import ConfigError
from unirl_env.registry import Registry
from unirl_env.rewards.learned.placement import Placement
from unirl_env.rewards.pictures.detections import Detection

COLOUR_NAMERS = Registry(
    "colours",
    {
        "lab": "unirl_env.rewards.pictures.named_colours:LabColours",
        "clip": "unirl_env.rewards.pictures.named_colours:CLIPColours",
    },
)
"""What names the colours of detections: `(picture, detections, label) -> names`."""

# fmt: off
_EXAMPLES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((200, 20, 30), (255, 60, 50), (140, 10, 20)),
    "orange": ((255, 130, 0), (230, 110, 40)),
    "yellow": ((255, 225, 30), (235, 200, 70)),
    "green": ((30, 150, 50), (90, 200, 80), (20, 80, 30), (120, 150, 60)),
    "blue": ((30, 70, 200), (80, 160, 235), (15, 25, 110)),
    "purple": ((120, 40, 160), (80, 30, 110), (170, 110, 210)),
    "pink": ((255, 150, 190), (240, 80, 160), (250, 200, 210)),
    "brown": ((110, 65, 35), (150, 100, 60), (70, 40, 20)),
    "black": ((15, 15, 15), (50, 50, 50)),
    "white": ((245, 245, 245), (210, 210, 210)),
}
# fmt: on
"""GenEval's ten colours, as light and dark as they come, in sRGB."""
_TO_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
_WHITE = (0.95047, 1.0, 1.08883)
MOST_PIXELS = 4096
"""About so many pixels of an object vote for its colour."""
_GREY = 0.6
"""What GenEval puts behind an object that is cut out: #999."""


class LabColours:
    """The name that most pixels have in the middle of an object, each by the nearest example in CIE Lab.

    The middle is the object's mask, or half the width and height of its box where there is no mask.

    Args:
        names: Name to an sRGB colour in [0, 255], or several; by default GenEval's ten.

    Raises:
        ConfigError: If a colour is malformed.
    """

    pointwise = True

    def __init__(self, names: Mapping[str, Any] | None = None):
        examples = _EXAMPLES if names is None else {name: _several(name, names[name]) for name in names}
        if not examples:
            raise ConfigError("`names` must hold at least one colour, got none.")
        self.names = tuple(examples)
        flat = [(i, rgb) for i, several in enumerate(examples.values()) for rgb in several]
        self._owner = torch.tensor([i for i, _ in flat])
        self._lab = _lab(torch.tensor([rgb for _, rgb in flat], dtype=torch.float32) / 255)

    def __call__(self, picture: Tensor, detections: Sequence[Detection], label: str) -> list[str]:
        """The colours of detections in `picture` `[3, H, W]`."""
        return [self._name(_middle(picture, one)) for one in detections]

    def _name(self, pixels: Tensor) -> str:
        if not len(pixels):
            return ""
        pixels = pixels[:: max(1, len(pixels) // MOST_PIXELS)]
        nearest = torch.cdist(_lab(pixels), self._lab).argmin(dim=1)
        votes = torch.bincount(self._owner[nearest], minlength=len(self.names))
        return self.names[int(votes.argmax())]


class CLIPColours(PassesOptions, passes_to=Placement):
    """GenEval's own: the colour word that a CLIP model finds likest to the object, cut out on grey.

    All objects of a picture go through the model together, and no other picture's with them.

    Args:
        model: An architecture of open_clip.
        pretrained: Its weights.
        names: The colours that are told apart.
        **network: Where and how the model computes; see `unirl_env.rewards.learned.placement.Placement`.

    Raises:
        MissingExtra: If open_clip is not installed.
        ConfigError: If a setting is out of range.
        ModelNotFound: If the model cannot be loaded.
    """

    pointwise = True
    TEMPLATES = (
        "a photo of a {colour} {label}",
        "a photo of a {colour}-colored {label}",
        "a photo of a {colour} object",
    )

    def __init__(
        self,
        model: str = "ViT-L-14",
        pretrained: str | None = "openai",
        *,
        names: Sequence[str] = tuple(_EXAMPLES),
        **network: Any,
    ):
        from unirl_env.rewards.learned.open_clip_model import OpenCLIPModel

        require("names", names, not isinstance(names, str) and len(names) >= 2, "at least two colours")
        self.names = tuple(names)
        self._model = OpenCLIPModel(model, pretrained, Placement(**network), asker="CLIPColours")
        self._words: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, picture: Tensor, detections: Sequence[Detection], label: str) -> list[str]:
        """The colours of detections in `picture` `[3, H, W]`."""
        seen = self._model.pictures([_cut_out(picture, one) for one in detections])
        return [self.names[i] for i in (seen @ self._of(label).T).argmax(dim=1).tolist()]

    def _of(self, label: str) -> Tensor:
        """`[colours, D]` unit vectors, each of the mean over the templates."""
        if label not in self._words:
            texts = [form.format(colour=name, label=label) for name in self.names for form in self.TEMPLATES]
            rows = self._model.texts(texts).unflatten(0, (len(self.names), len(self.TEMPLATES)))
            self._words[label] = torch.nn.functional.normalize(rows.mean(dim=1), dim=-1)
        return self._words[label]


def _several(name: str, colours: Any) -> tuple[tuple[float, ...], ...]:
    try:
        several = torch.as_tensor(colours, dtype=torch.float32).reshape(-1, 3)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"`names[{name!r}]` must be an sRGB colour such as [200, 20, 30], got {colours!r}."
        ) from error
    if not bool(((several >= 0) & (several <= 255)).all()):
        raise ConfigError(f"`names[{name!r}]` must lie in [0, 255], got {colours!r}.")
    return tuple(tuple(row) for row in several.tolist())


def _lab(rgb: Tensor) -> Tensor:
    """CIE Lab (D65) of sRGB `[N, 3]` in [0, 1]."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x = linear @ torch.tensor(_TO_XYZ).T / torch.tensor(_WHITE)
    f = torch.where(x > (6 / 29) ** 3, x.clamp_min(1e-9) ** (1 / 3), x / (3 * (6 / 29) ** 2) + 4 / 29)
    return torch.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], dim=1)


def _window(picture: Tensor, box: Sequence[float], share: float = 1.0) -> tuple[slice, slice]:
    """Rows and columns of the middle `share` of a box, at least one pixel each, inside the picture."""
    slices = []
    for low, high, side in ((box[1], box[3], picture.shape[1]), (box[0], box[2], picture.shape[2])):
        cut = (high - low) * (1 - share) / 2
        start = min(max(round(low + cut), 0), side - 1)
        slices.append(slice(start, min(max(round(high - cut), start + 1), side)))
    return slices[0], slices[1]


def _middle(picture: Tensor, one: Detection) -> Tensor:
    """The pixels `[N, 3]` that tell an object's colour."""
    if one.mask is not None:
        return picture[:, one.mask.to(picture.device)].T
    rows, columns = _window(picture, one.box, 0.5)
    return picture[:, rows, columns].flatten(1).T


def _cut_out(picture: Tensor, one: Detection) -> Tensor:
    """The object `[3, h, w]` in its box, on grey where its mask says that it is not there."""
    if one.mask is not None:
        picture = torch.where(one.mask.to(picture.device), picture, torch.full_like(picture, _GREY))
    rows, columns = _window(picture, one.box)
    return picture[:, rows, columns].contiguous()
