"""Tensors and pictures of a request: each lies in the file under a name, and in its form.

A form is `plain` (as it is), `levels` (a picture of whole 255ths as bytes) or `png`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unirl_env.errors import PromptError, WireError
from unirl_env.media.pixels import in_8_bits, load_picture, png_bytes
from unirl_env.settings.fields import setting


@dataclass(frozen=True)
class Limits:
    """What a request may hold at most.

    Attributes:
        body: Bytes of a request.
        samples: Samples of a request.
        pixels: Pixels of one picture, before it is decoded.
        characters: Characters of one text.
        unpacked: Bytes of all its pictures together, once they are float32.
        words: Bytes of its JSON, which takes many times as much room once it is read.
        values: Commas, colons and brackets of its JSON, counted before it is read.
        pictures: Pictures and other tensors of a request.
    """

    body: int = setting(256 * 2**20, least=1)
    samples: int = setting(1024, least=1)
    pixels: int = setting(16_000_000, least=1)
    characters: int = setting(1_000_000, least=1)
    unpacked: int = setting(4 * 2**30, least=1)
    words: int = setting(32 * 2**20, least=1)
    values: int = setting(4_000_000, least=1)
    pictures: int = setting(16_384, least=1)


class TensorWriter:
    """Takes tensors and gives the words that name them.

    Attributes:
        tensors: What has been taken, by name.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def add(self, tensor: Tensor, *, picture: bool = False, png: bool = False) -> dict[str, str]:
        """Take a tensor.

        Args:
            tensor: Of any shape; a picture ends in `[3, H, W]`, float32 or uint8.
            picture: Whether it is one or several pictures.
            png: Round it to 8 bits and compress it, if it is one finite picture `[3, H, W]`.

        Raises:
            WireError: If a picture is neither.
        """
        tensor = tensor.detach().to("cpu").contiguous()
        if picture and tensor.dtype not in (torch.float32, torch.uint8):
            raise WireError(f"A picture must be float32 to be sent, got {tensor.dtype}; try `.float()`.")
        form, packed = "plain", None
        if tensor.dtype == torch.uint8:
            pass  # as small as it can be
        elif png and tensor.ndim == 3 and tensor.shape[0] == 3 and bool(tensor.isfinite().all()):
            file = bytearray(png_bytes(tensor, compress_level=1))
            form, packed = "png", torch.frombuffer(file, dtype=torch.uint8)
        elif picture:
            levels = in_8_bits(tensor)
            # By bits, because -0.0 equals 0.0.
            if torch.equal(_of_levels(levels).view(torch.int32), tensor.view(torch.int32)):
                form, packed = "levels", levels
        name = str(len(self.tensors))
        # A view into a batch would share memory, which the format refuses.
        self.tensors[name] = tensor.clone() if packed is None else packed
        return {"tensor": name, "form": form}


class TensorReader:
    """Finds tensors by the words that name them; one that is named twice is unpacked once.

    Args:
        tensors: The tensors of the file, by name.
        limits: What they may hold.
        claim: Told before something is unpacked how many bytes all of it will then have; may raise.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        limits: Limits,
        claim: Callable[[int], None] = lambda count: None,
    ):
        self._tensors = tensors
        self._claim = claim
        self._looked_at = 0
        self._limits = limits
        self._unpacked: dict[tuple[str, str], Tensor] = {}
        self._bytes = 0

    def get(self, word: Mapping[str, Any], *, looked_at: bool = False) -> Tensor:
        """The tensor that `word` names, as it was sent.

        Args:
            word: Its name and form.
            looked_at: Count it each time, because a scorer will look at it each time.

        Raises:
            WireError: If there is none, it is damaged, or too much is unpacked or looked at.
        """
        name, form = word.get("tensor"), word.get("form")
        if not isinstance(name, str) or name not in self._tensors:
            raise WireError(f"A tensor must be named by one of the file, got {name!r:.80}.")
        if form not in ("plain", "levels", "png"):
            raise WireError(f"`form` must be plain, levels or png, got {form!r:.80}.")
        if (name, form) not in self._unpacked:
            tensor = self._tensors[name]
            self._unpacked[name, form] = tensor if form == "plain" else self._picture(tensor, form)
        tensor = self._unpacked[name, form]
        self._looked_at += tensor.nbytes if looked_at else 0
        if self._looked_at > max(self._limits.unpacked, self._limits.body):
            raise WireError(
                f"The samples of a request must hold at most {self._limits.unpacked} bytes, each for itself; "
                "try fewer of them."
            )
        return tensor

    def _picture(self, tensor: Tensor, form: str) -> Tensor:
        if tensor.dtype != torch.uint8:
            raise WireError(f"A picture in levels or as PNG must be uint8, got {tensor.dtype}.")
        if form == "levels":
            self._spend(4 * tensor.numel())
            return _of_levels(tensor)
        return read_png(
            tensor.numpy().tobytes(), self._limits.pixels, lambda pixels: self._spend(4 * 3 * pixels)
        )

    def _spend(self, count: int) -> None:
        self._bytes += count
        if self._bytes > self._limits.unpacked:
            raise WireError(
                f"The pictures of a request must have at most {self._limits.unpacked} bytes as float32; try "
                "fewer of them."
            )
        self._claim(self._bytes)


def read_png(data: bytes, most_pixels: int, spend: Callable[[int], None] = lambda pixels: None) -> Tensor:
    """A PNG as `[3, H, W]` float32 in [0, 1]; no other format is tried.

    Args:
        data: The file.
        most_pixels: How many it may have, told by its head before anything is decoded.
        spend: Told then how many it has; may raise.

    Raises:
        WireError: If it is none, is damaged, or has too many pixels.
    """
    from PIL import Image

    spend(png_pixels(data, most_pixels))
    with _sound(), Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
        return load_picture(picture)


def png_pixels(data: bytes, most: int) -> int:
    """How many pixels the head of a PNG says that it has; nothing is decoded.

    Raises:
        WireError: If it is none, or has more than `most`.
    """
    from PIL import Image

    with _sound(), Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
        width, height = picture.size
    if width * height > most:
        raise WireError(f"A picture must have at most {most} pixels, got {width} x {height}.")
    return width * height


@contextmanager
def _sound() -> Iterator[None]:
    try:
        yield
    except PromptError as error:
        raise WireError(f"A picture must be a sound PNG, got: {error}") from error
    except Exception as error:  # Pillow raises whatever its plugins raise on damaged files.
        raise WireError(f"A picture must be a sound PNG, got {type(error).__name__}.") from error


def _of_levels(levels: Tensor) -> Tensor:
    return levels.float().div_(255.0)
