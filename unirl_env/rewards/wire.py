"""Samples, prompts and scores as bytes: what `RemoteScorer` says to the service, and what it hears.

A request is one safetensors file: the tensor `request` holds UTF-8 JSON, in which tensors and pictures are
named by the other tensors of the file. A picture whose values are whole 255ths travels as bytes, any other as
it is, so that what arrives is bitwise what was sent. Nothing here can execute code: there is no pickle, and
paths are refused.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unirl_env.errors import WireError
from unirl_env.pixels import load_picture
from unirl_env.types import Prompt, Sample, Scores

__all__ = [
    "PROTOCOL",
    "TENSORS",
    "Limits",
    "ScoreRequest",
    "decode_request",
    "encode_request",
    "read_png",
    "scores_as_json",
    "scores_from_json",
]

PROTOCOL = 1
TENSORS = "application/vnd.safetensors"
"""The content type of a request in tensors."""
RANKS = {"image": 3, "pictures": 4, "video": 4, "latent": None, "tokens": 1}
"""The fields of a sample that are tensors, and their ranks."""
PICTURES = ("image", "pictures", "video")


@dataclass(frozen=True)
class ScoreRequest:
    """Samples to be judged by one reward.

    Attributes:
        id: The same for every attempt at the same work; a service does it once.
        reward: The service's name of the reward.
        samples: B finished samples.
        prompts: B prompts.
    """

    id: str
    reward: str
    samples: tuple[Sample, ...]
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class Limits:
    """What a request may hold at most.

    Attributes:
        body: Bytes of a request.
        samples: Samples of a request.
        pixels: Pixels of one picture, before it is decoded.
        characters: Characters of one text.
    """

    body: int = 256 * 2**20
    samples: int = 1024
    pixels: int = 16_000_000
    characters: int = 1_000_000


def encode_request(request: ScoreRequest, *, png: bool = False) -> bytes:
    """A request as bytes.

    Args:
        request: What to send. Pictures of prompts that lie in files are read and sent along.
        png: Send pictures as PNG, rounded to 8 bits: a third of the bytes, and much more work.

    Raises:
        WireError: If something cannot be sent: metadata that is no JSON, or an unknown kind of tensor.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    items = [
        {"sample": _sample_out(sample, tensors, png), "prompt": _prompt_out(prompt, tensors)}
        for sample, prompt in zip(request.samples, request.prompts, strict=True)
    ]
    head = {"protocol": PROTOCOL, "id": request.id, "reward": request.reward, "items": items}
    try:
        text = json.dumps(head, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise WireError(
            f"`Prompt.metadata` and `Prompt.messages` must be JSON to be scored remotely, got {error}; try "
            "texts, numbers, lists and mappings."
        ) from error
    return save({**tensors, "request": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)})


def decode_request(body: bytes, limits: Limits = Limits()) -> ScoreRequest:
    """What `encode_request` wrote.

    Raises:
        WireError: Naming what is malformed or too large.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if len(body) > limits.body:
        raise WireError(f"A request must have at most {limits.body} bytes, got {len(body)}.")
    try:
        tensors = load(body)
        head = json.loads(tensors.pop("request").numpy().tobytes())
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise WireError(
            f"A request must be a safetensors file with the tensor `request`, got {type(error).__name__}."
        ) from error
    if not isinstance(head, Mapping) or head.get("protocol") != PROTOCOL:
        raise WireError(f"A request must be of protocol {PROTOCOL}; try the same version on both sides.")
    items = head.get("items")
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise WireError("`items` must be a list of mappings with `sample` and `prompt`.")
    if not 1 <= len(items) <= limits.samples:
        raise WireError(f"`items` must be 1 to {limits.samples}, got {len(items)}.")
    return ScoreRequest(
        id=_text(head.get("id"), "id", limits),
        reward=_text(head.get("reward"), "reward", limits),
        samples=tuple(_sample_in(_mapping(item.get("sample")), tensors, limits) for item in items),
        prompts=tuple(_prompt_in(_mapping(item.get("prompt")), tensors, limits) for item in items),
    )


def read_png(data: bytes, most_pixels: int) -> Tensor:
    """A PNG as `[3, H, W]` float32 in [0, 1]; no other format is tried.

    Raises:
        WireError: If it is none, is damaged, or has too many pixels.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            width, height = picture.size
            if width * height > most_pixels:
                raise WireError(f"A picture must have at most {most_pixels} pixels, got {width} x {height}.")
            return load_picture(picture)
    except WireError:
        raise
    except Exception as error:  # Pillow raises whatever its plugins raise on damaged files.
        raise WireError(f"A picture must be a sound PNG, got {type(error).__name__}.") from error


def scores_as_json(scores: Scores) -> dict[str, Any]:
    """Scores as JSON: what is not finite is null, and float32 comes back as it was."""
    return {
        "value": _numbers(scores.value),
        "parts": {name: _numbers(part) for name, part in scores.parts.items()},
        "valid": scores.valid.tolist(),
    }


def scores_from_json(reply: Any, count: int) -> Scores:
    """What `scores_as_json` wrote about `count` samples.

    Raises:
        WireError: If it is malformed, of another length, or says that a score is valid and gives none.
    """
    if not isinstance(reply, Mapping) or not isinstance(reply.get("parts", {}), Mapping):
        raise WireError(f"Scores must be a mapping with `value`, `parts` and `valid`, got {reply!r:.80}.")
    value = _column(reply.get("value"), "value", count)
    valid = reply.get("valid")
    if not isinstance(valid, list) or [type(one) for one in valid] != [bool] * count:
        raise WireError(f"`valid` must be {count} truth values, got {valid!r:.80}.")
    parts = {str(name): _column(part, name, count) for name, part in reply.get("parts", {}).items()}
    scores = Scores(torch.tensor(value), {name: torch.tensor(part) for name, part in parts.items()})
    if bool((torch.tensor(valid) & ~scores.valid).any()):
        raise WireError("A valid score must be a finite number, got null.")
    return Scores(scores.value, scores.parts, torch.tensor(valid, dtype=torch.bool))


def _numbers(column: Tensor) -> list[float | None]:
    return [number if math.isfinite(number) else None for number in column.tolist()]


def _column(values: Any, name: str, count: int) -> list[float]:
    if not isinstance(values, list) or len(values) != count:
        raise WireError(f"`{name}` must be {count} numbers, got {values!r:.80}.")
    for one in values:
        if one is not None and (isinstance(one, bool) or not isinstance(one, int | float)):
            raise WireError(f"`{name}` must be numbers or null, got {one!r:.80}.")
    return [math.nan if one is None else float(one) for one in values]


# One sample, one prompt.


def _sample_out(sample: Sample, tensors: dict[str, Tensor], png: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"truncated": sample.truncated}
    if sample.text is not None:
        found["text"] = sample.text
    for name in RANKS:
        tensor = getattr(sample, name)
        if tensor is not None:
            found[name] = _tensor_out(tensor, tensors, png and name == "image", name in PICTURES)
    return found


def _prompt_out(prompt: Prompt, tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "text": prompt.text,
        "id": prompt.id,
        "negative": prompt.negative,
        "metadata": dict(prompt.metadata),
        "messages": [dict(message) for message in prompt.messages],
        "images": [_tensor_out(load_picture(image), tensors, False, True) for image in prompt.images],
    }


def _tensor_out(tensor: Tensor, tensors: dict[str, Tensor], png: bool, picture: bool) -> dict[str, Any]:
    tensor = tensor.detach().to("cpu").contiguous()
    name = str(len(tensors))
    if png:
        tensors[name] = torch.frombuffer(bytearray(_png(tensor)), dtype=torch.uint8)
        return {"tensor": name, "form": "png"}
    levels = tensor.mul(255).round().clamp(0, 255).to(torch.uint8) if picture else None
    if levels is not None and torch.equal(_of_levels(levels), tensor):
        tensors[name] = levels
        return {"tensor": name, "form": "levels"}
    tensors[name] = tensor.clone()  # a view into a batch would share memory, which the format refuses
    return {"tensor": name, "form": "plain"}


def _of_levels(levels: Tensor) -> Tensor:
    return levels.float() / 255.0


def _png(picture: Tensor) -> bytes:
    from PIL import Image

    if not bool(picture.isfinite().all()):
        raise WireError("A picture must be finite to be sent as PNG; try raw tensors.")
    levels = picture.float().clamp(0, 1).mul(255).round().to(torch.uint8)
    stream = io.BytesIO()
    Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy()).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _sample_in(item: Mapping[str, Any], tensors: Mapping[str, Tensor], limits: Limits) -> Sample:
    fields: dict[str, Any] = {"truncated": item.get("truncated") is True}
    if item.get("text") is not None:
        fields["text"] = _text(item["text"], "text", limits)
    for name, rank in RANKS.items():
        if item.get(name) is not None:
            tensor = _tensor_in(item[name], tensors, limits)
            if name in PICTURES:
                _check_picture(tensor, name, rank, limits)
            elif name == "tokens" and (tensor.ndim != 1 or tensor.dtype != torch.int64):
                raise WireError(f"`tokens` must be int64 [n], got {tensor.dtype} {list(tensor.shape)}.")
            fields[name] = tensor
    return Sample(**fields)


def _prompt_in(item: Mapping[str, Any], tensors: Mapping[str, Tensor], limits: Limits) -> Prompt:
    images = [_tensor_in(image, tensors, limits) for image in _list(item.get("images"))]
    for image in images:
        _check_picture(image, "images", 3, limits)
    return Prompt(
        text=_text(item.get("text"), "text", limits),
        id=_text(item.get("id", ""), "id", limits),
        negative=_text(item.get("negative", ""), "negative", limits),
        metadata=_mapping(item.get("metadata", {})),
        messages=tuple(_mapping(message) for message in _list(item.get("messages"))),
        images=tuple(images),
    )


def _tensor_in(word: Any, tensors: Mapping[str, Tensor], limits: Limits) -> Tensor:
    word = _mapping(word)
    tensor = tensors.get(word.get("tensor")) if isinstance(word.get("tensor"), str) else None
    if tensor is None:
        raise WireError(f"A tensor must be named by one of the file, got {word.get('tensor')!r:.80}.")
    if word.get("form") == "plain":
        return tensor
    if tensor.dtype != torch.uint8:
        raise WireError(f"A picture in levels or as PNG must be uint8, got {tensor.dtype}.")
    if word.get("form") == "png":
        return read_png(tensor.numpy().tobytes(), limits.pixels)
    if word.get("form") == "levels":
        return _of_levels(tensor)
    raise WireError(f"`form` must be plain, levels or png, got {word.get('form')!r:.80}.")


def _check_picture(tensor: Tensor, name: str, rank: int, limits: Limits) -> None:
    if tensor.ndim != rank or tensor.shape[-3] != 3 or tensor.dtype != torch.float32 or not tensor.numel():
        raise WireError(
            f"`{name}` must be float32 of rank {rank} with 3 channels, got {tensor.dtype} "
            f"{list(tensor.shape)}."
        )
    if tensor.shape[-2] * tensor.shape[-1] > limits.pixels:
        raise WireError(f"`{name}` must have at most {limits.pixels} pixels, got {list(tensor.shape)}.")


def _text(value: Any, name: str, limits: Limits) -> str:
    if not isinstance(value, str) or len(value) > limits.characters:
        got = f"{len(value)} characters" if isinstance(value, str) else type(value).__name__
        raise WireError(f"`{name}` must be a text of at most {limits.characters} characters, got {got}.")
    return value


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise WireError(f"A mapping must stand here, got {value!r:.80}.")
    return value


def _list(value: Any) -> Sequence[Any]:
    if value is not None and not isinstance(value, list):
        raise WireError(f"A list must stand here, got {value!r:.80}.")
    return value or ()
