"""Samples, prompts and scores as bytes: what `RemoteScorer` sends to the service, and what comes back.

A request is one safetensors file: the tensor `request` holds UTF-8 JSON, in which tensors and pictures are
named by the other tensors of the file. A picture whose values are whole 255ths travels as bytes, any other as
it is, so that what arrives is bitwise what was sent. Nothing here can execute code: there is no pickle, and
paths are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unirl_env.errors import WireError
from unirl_env.media.pixels import load_picture
from unirl_env.rewards.inputs import tensor_of
from unirl_env.rewards.wire.tensors import Limits, TensorReader, TensorWriter
from unirl_env.types import Prompt, Sample, Scores

PROTOCOL = 1
TENSORS = "application/vnd.safetensors"
"""The content type of a request in tensors."""
RANKS = {"image": 3, "pictures": 4, "video": 4, "latent": None, "tokens": 1}
"""The fields of a sample that are tensors, and their ranks."""
PICTURES = ("image", "pictures", "video")
USUAL = Limits()
DEEPEST = 64
"""Lists and mappings inside each other; whoever walks them by recursion must come to the end."""


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


def encode_request(request: ScoreRequest, *, png: bool = False) -> bytes:
    """A request as bytes.

    Args:
        request: What to send. Pictures of prompts that lie in files are read and sent along.
        png: Send pictures as PNG, rounded to 8 bits: fewer bytes, and much more work.

    Raises:
        WireError: If something cannot be sent: metadata that is no JSON, or an unknown kind of tensor.
        ContractError: If a field of a sample that holds a tensor holds something else.
    """
    from safetensors.torch import save

    tensors = TensorWriter()
    # The samples of a group share their prompt, whose pictures are sent once.
    distinct = {id(prompt): prompt for prompt in request.prompts}
    prompts = {key: _prompt_out(prompt, tensors) for key, prompt in distinct.items()}
    items = [
        {"sample": _sample_out(sample, tensors, png), "prompt": prompts[id(prompt)]}
        for sample, prompt in zip(request.samples, request.prompts, strict=True)
    ]
    head = {"protocol": PROTOCOL, "id": request.id, "reward": request.reward, "items": items}
    try:
        text = json.dumps(head, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise _no_json(error) from error
    try:
        return save({**tensors.tensors, "request": torch.frombuffer(bytearray(text), dtype=torch.uint8)})
    except Exception as error:  # The format knows some dtypes only, and says so in many ways.
        raise WireError(f"A tensor must be of a dtype that safetensors knows, got {error!r}.") from error


def json_in(body: bytes, limits: Limits = USUAL) -> memoryview:
    """The JSON of a request in tensors, found by the head of its file; nothing is unpacked.

    Raises:
        WireError: If there is none, or the file holds more tensors than it may.
    """
    size = int.from_bytes(body[:8], "little")
    # The head is read by a parser that keeps everything, of which a tensor of no bytes is the cheapest.
    if size > min(len(body) - 8, limits.words):
        raise WireError("A request must be a safetensors file with the tensor `request`, got a longer head.")
    head = body[8 : 8 + size]
    count = head.count(b"data_offsets")
    if count > limits.pictures + 1:
        raise WireError(f"A request must have at most {limits.pictures} tensors, got {count}; try fewer.")
    try:
        start, end = json.loads(head)["request"]["data_offsets"]
        return memoryview(body)[8 + size + start : 8 + size + end]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WireError(
            f"A request must be a safetensors file with the tensor `request`, got {type(error).__name__}."
        ) from error


def decode_request(
    body: bytes, limits: Limits = USUAL, claim: Callable[[int], None] = lambda count: None
) -> ScoreRequest:
    """What `encode_request` wrote.

    Args:
        body: The bytes.
        limits: What they may hold.
        claim: Told before pictures are unpacked how many bytes all of them will then have; may raise.

    Raises:
        WireError: Naming what is malformed or too large.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if len(body) > limits.body:
        raise WireError(f"A request must have at most {limits.body} bytes, got {len(body)}.")
    json_in(body, limits)
    try:
        tensors = load(body)
        head = read_json(tensors.pop("request").numpy().tobytes(), limits.words)
    except WireError:
        raise
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
    reader = TensorReader(tensors, limits, claim)
    return ScoreRequest(
        id=_text(head.get("id"), "id", limits),
        reward=_text(head.get("reward"), "reward", limits),
        samples=tuple(_sample_in(_mapping(item.get("sample")), reader, limits) for item in items),
        prompts=tuple(_prompt_in(_mapping(item.get("prompt")), reader, limits) for item in items),
    )


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


def read_json(data: bytes, most: int) -> Any:
    """JSON in UTF-8, of finite numbers.

    Args:
        data: The text.
        most: Its most bytes.

    Raises:
        WireError: If it is longer or deeper than it may be, or holds NaN or an infinity.
        ValueError: If it is no JSON at all; also as `RecursionError`, where it is very deep.
    """
    if len(data) > most:
        raise WireError(f"The JSON of a request must have at most {most} bytes, got {len(data)}.")
    found = json.loads(data.decode())
    level = [found]
    for _ in range(DEEPEST):
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return found
    raise WireError(f"The JSON of a request must have at most {DEEPEST} levels, got more.")


# One sample, one prompt.


def _sample_out(sample: Sample, tensors: TensorWriter, png: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"truncated": sample.truncated}
    if sample.text is not None:
        found["text"] = sample.text
    if sample.before:
        found["before"] = sample.before
    for name in RANKS:
        tensor = tensor_of(sample, name, "remote")
        if tensor is not None:
            found[name] = tensors.add(tensor, picture=name in PICTURES, png=png and name == "image")
    return found


def _prompt_out(prompt: Prompt, tensors: TensorWriter) -> dict[str, Any]:
    return {
        "text": prompt.text,
        "id": prompt.id,
        "negative": prompt.negative,
        "metadata": _plain(prompt.metadata),
        "messages": [_plain(message) for message in prompt.messages],
        "images": [tensors.add(load_picture(image), picture=True) for image in prompt.images],
    }


def _plain(value: Any) -> Any:
    """`value` in lists and dictionaries; JSON would turn keys that are no texts into texts without a word."""
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise _no_json(f"the key {wrong[0]!r:.80}")
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def require_plain(prompt: Prompt) -> None:
    """Refuse metadata and turns that are no JSON.

    Raises:
        WireError: Naming them.
    """
    try:
        json.dumps([_plain(prompt.metadata), *map(_plain, prompt.messages)], allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise error if isinstance(error, WireError) else _no_json(error) from error


def _no_json(got: Any) -> WireError:
    return WireError(
        f"`Prompt.metadata` and `Prompt.messages` must be JSON to be scored remotely, got {got}; try texts, "
        "numbers, lists, and mappings whose keys are texts."
    )


def _sample_in(item: Mapping[str, Any], tensors: TensorReader, limits: Limits) -> Sample:
    fields: dict[str, Any] = {"truncated": item.get("truncated") is True}
    if item.get("text") is not None:
        fields["text"] = _text(item["text"], "text", limits)
    if item.get("before") is not None:
        fields["before"] = _text(item["before"], "before", limits)
    for name, rank in RANKS.items():
        if item.get(name) is not None:
            tensor = tensors.get(_mapping(item[name]), looked_at=True)
            if name in PICTURES:
                _check_picture(tensor, name, rank, limits)
            elif name == "tokens" and (tensor.ndim != 1 or tensor.dtype != torch.int64):
                raise WireError(f"`tokens` must be int64 [n], got {tensor.dtype} {list(tensor.shape)}.")
            fields[name] = tensor
    return Sample(**fields)


def _prompt_in(item: Mapping[str, Any], tensors: TensorReader, limits: Limits) -> Prompt:
    images = [tensors.get(_mapping(image)) for image in _list(item.get("images"))]
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


def _check_picture(tensor: Tensor, name: str, rank: int | None, limits: Limits) -> None:
    known = (torch.float32, torch.uint8) if name == "video" else (torch.float32,)
    if tensor.ndim != rank or tensor.shape[-3] != 3 or tensor.dtype not in known or not tensor.numel():
        kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in known)
        raise WireError(
            f"`{name}` must be {kinds} of rank {rank} with 3 channels, got {tensor.dtype} "
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


# Numbers, and JSON from strangers.


def _numbers(column: Tensor) -> list[float | None]:
    return [number if math.isfinite(number) else None for number in column.tolist()]


def _column(values: Any, name: str, count: int) -> list[float]:
    if not isinstance(values, list) or len(values) != count:
        raise WireError(f"`{name}` must be {count} numbers, got {values!r:.80}.")
    for one in values:
        if one is not None and (isinstance(one, bool) or not isinstance(one, int | float)):
            raise WireError(f"`{name}` must be numbers or null, got {one!r:.80}.")
    try:
        return [math.nan if one is None else float(one) for one in values]
    except OverflowError as error:
        raise WireError(f"`{name}` must be numbers of float32, got a larger one.") from error


def _inside(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [*value, *value.values()]
    if isinstance(value, list):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise WireError(f"A number must be finite in a request, got {value}; try null.")
    return []
