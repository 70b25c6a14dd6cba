"""Requests and replies in JSON, for people, curl and programs that know no tensors; and their description."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from unirl_env.errors import WireError
from unirl_env.rewards.wire import TENSORS, Limits, ScoreRequest
from unirl_env.rewards.wire.messages import read_json as parsed_json
from unirl_env.rewards.wire.tensors import TensorReader, png_pixels
from unirl_env.service.error_replies import Refused
from unirl_env.types import Prompt, Sample

LONGEST_ID = 200
SHOWN_MISTAKES = 3

PNG = Annotated[str, Field(description="A PNG file in base64.", json_schema_extra={"format": "png-base64"})]
Token = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class _Body(BaseModel):
    # Strict, because a text where a number belongs is a mistake that somebody wants to hear of.
    model_config = ConfigDict(extra="forbid", strict=True)


class SampleBody(_Body):
    """What a generative model made; the fields that the reward looks at."""

    image_png: PNG | None = Field(None, description="The picture.")
    pictures_png: list[PNG] | None = Field(
        None, min_length=1, description="All pictures that were drawn from one text, of one size."
    )
    video_png: list[PNG] | None = Field(None, min_length=1, description="The frames of a video, of one size.")
    text: str | None = Field(None, description="The generated text.")
    tokens: list[Token] | None = Field(None, description="All tokens after the prompt.")
    truncated: bool = Field(False, description="Whether the length limit ended the text.")
    before: str = Field("", description="The end of the prompt, which may open a thought.")


class PromptBody(_Body):
    """What the model was asked for."""

    text: str = Field(description="The words of the request.")
    id: str = Field("", description="A stable key of the prompt; by default its text.")
    negative: str = Field("", description="What to steer away from.")
    metadata: dict[str, JsonValue] = Field(
        default_factory=dict, description="What the reward needs to know, such as the expected answer."
    )
    messages: list[dict[str, JsonValue]] = Field(
        default_factory=list, description="Chat turns, each with `role` and `content`."
    )
    images_png: list[PNG] = Field(default_factory=list, description="Pictures that belong to the request.")


class ItemBody(_Body):
    """A sample and the prompt that it answers."""

    sample: SampleBody
    prompt: PromptBody


class ScoreBody(_Body):
    """Samples to be judged by one reward."""

    id: str = Field(
        "",
        max_length=LONGEST_ID,
        description="The same for every attempt at the same work, which is done once; may be empty.",
    )
    reward: str = Field(description="A name of `GET /rewards`.", examples=["jpeg"])
    items: list[ItemBody] = Field(min_length=1, description="At least one.")


class ScoresBody(BaseModel):
    """The judgement, one entry per item, in order."""

    value: list[float | None] = Field(description="The score; null where there is none.")
    parts: dict[str, list[float | None]] = Field(description="Named components of the score.")
    valid: list[bool] = Field(description="Whether the score may be used.")


class ScoreReply(BaseModel):
    """The answer to a request."""

    id: str
    reward: str
    scores: ScoresBody


class RewardBody(BaseModel):
    """One reward of the service."""

    name: str = Field(description="How requests call it.")
    scorer: str = Field(description="How the scorer calls itself.")
    needs: list[str] = Field(description="The fields of a sample that it looks at, if it says so.")
    pointwise: bool = Field(description="Whether a score depends on its own sample and prompt alone.")


class RewardsReply(BaseModel):
    """What can be asked for."""

    protocol: int
    rewards: list[RewardBody]


class HealthReply(BaseModel):
    """Whether the service takes requests."""

    status: Literal["ok", "draining", "stuck"]
    protocol: int
    version: str


class ErrorBody(BaseModel):
    """What is wrong."""

    code: str = Field(description="A word for programs.")
    message: str = Field(description="What must be, what came, and what to try.")


class ErrorReply(BaseModel):
    """Every answer that is no success."""

    error: ErrorBody


def read_json(body: bytes, limits: Limits, claim: Callable[[int], None] = lambda count: None) -> ScoreRequest:
    """A request in JSON.

    Args:
        body: The bytes.
        limits: What they may hold.
        claim: Told before pictures are unpacked how many bytes all of them will then have; may raise.

    Raises:
        Refused: If it does not fit the schema.
        WireError: If it is no JSON, a picture is none, or something in it is too large.
    """
    try:
        found = ScoreBody.model_validate(parsed_json(body, limits.words))
    except WireError:
        raise
    except ValidationError as error:  # a ValueError, too
        raise _explained(error) from None
    except (ValueError, RecursionError) as error:
        raise WireError(f"A request must be JSON, got {error}.") from error
    if len(found.items) > limits.samples:
        raise WireError(f"`items` must be 1 to {limits.samples}, got {len(found.items)}.")
    pictures = _Pictures(limits, claim)
    for item in found.items:
        texts = (item.sample.text or "", item.prompt.text, item.prompt.id, item.prompt.negative)
        if max(map(len, texts)) > limits.characters:
            raise WireError(f"A text must have at most {limits.characters} characters, got more.")
    for item in found.items:
        pictures.foresee(item)
    return ScoreRequest(
        id=found.id,
        reward=found.reward,
        samples=tuple(_sample(item.sample, pictures) for item in found.items),
        prompts=tuple(_prompt(item.prompt, pictures) for item in found.items),
    )


def _explained(error: ValidationError) -> Refused:
    mistakes = error.errors(include_url=False, include_input=False, include_context=False)
    said = [f"`{_place(one['loc'])}`: {one['msg']}" for one in mistakes[:SHOWN_MISTAKES]]
    if len(mistakes) > len(said):
        said.append(f"{len(mistakes) - len(said)} more")
    return Refused(422, "invalid", f"A request must fit the schema, got {'; '.join(said)}.")


def _place(path: tuple[Any, ...]) -> str:
    text = "".join(f"[{one}]" if isinstance(one, int) else f".{one:.80}" for one in path)
    return text.removeprefix(".") or "the request"


class _Pictures:
    """The pictures of one request, which share its limits."""

    def __init__(self, limits: Limits, claim: Callable[[int], None]):
        self._files: dict[str, torch.Tensor] = {}
        self._limits, self._claim = limits, claim
        self._count = self._bytes = 0
        self._reader = TensorReader(self._files, limits, claim)

    def foresee(self, item: ItemBody) -> None:
        """Count the pictures of an item by their heads: of a request with too many, none is decoded."""
        made = item.sample
        listed = [
            made.image_png,
            *(made.pictures_png or ()),
            *(made.video_png or ()),
            *item.prompt.images_png,
        ]
        found = [text for text in listed if text is not None]
        self._count += len(found)
        if self._count > self._limits.pictures:
            most = self._limits.pictures
            raise WireError(f"A request must have at most {most} pictures, got more; try fewer.")
        for text in found:
            self._bytes += 4 * 3 * png_pixels(_file_of(text), self._limits.pixels)
            if self._bytes > self._limits.unpacked:
                raise WireError(
                    f"The pictures of a request must have at most {self._limits.unpacked} bytes as float32; "
                    "try fewer of them."
                )
        self._claim(self._bytes)

    def one(self, text: str) -> torch.Tensor:
        data = _file_of(text)
        name = str(len(self._files))
        self._files[name] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return self._reader.get({"tensor": name, "form": "png"})

    def several(self, texts: list[str] | None, name: str) -> torch.Tensor | None:
        if texts is None:
            return None
        pictures = [self.one(text) for text in texts]
        sizes = sorted({tuple(picture.shape[1:]) for picture in pictures})
        if len(sizes) > 1:
            raise WireError(f"`{name}` must hold pictures of one size, got {sizes[:3]}.")
        return torch.stack(pictures)


def _file_of(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise WireError(f"A picture must be a PNG in base64, got {error}.") from error
    if not data:
        raise WireError("A picture must be a PNG in base64, got an empty text.")
    return data


def _sample(body: SampleBody, pictures: _Pictures) -> Sample:
    return Sample(
        image=None if body.image_png is None else pictures.one(body.image_png),
        pictures=pictures.several(body.pictures_png, "pictures_png"),
        video=pictures.several(body.video_png, "video_png"),
        text=body.text,
        tokens=None if body.tokens is None else torch.tensor(body.tokens, dtype=torch.int64),
        truncated=body.truncated,
        before=body.before,
    )


def _prompt(body: PromptBody, pictures: _Pictures) -> Prompt:
    return Prompt(
        text=body.text,
        id=body.id,
        negative=body.negative,
        metadata=body.metadata,
        messages=tuple(body.messages),
        images=tuple(pictures.one(text) for text in body.images_png),
    )


# The OpenAPI description: what FastAPI cannot see, because the body of `/score` is read by hand.

MEANINGS = {
    400: "The request is malformed.",
    401: "The token is missing or wrong.",
    404: "There is no such reward.",
    405: "There is no such method.",
    408: "The request arrives too slowly.",
    409: "The id stands for another request.",
    413: "The request is too large.",
    415: "The content type is unknown.",
    422: "The request does not fit the schema, or the reward cannot judge such samples.",
    429: "Too much waits; come again later.",
    503: "The service ends; ask another one.",
}
REFERENCE = "#/components/schemas/"

SCORE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": f"{REFERENCE}ScoreBody"}},
            TENSORS: {
                "schema": {
                    "type": "string",
                    "format": "binary",
                    "description": "A safetensors file, as `rewards.wire.encode_request` writes it.",
                }
            },
        },
    }
}
"""The body of `POST /score`."""


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The description of refusals."""
    return {status: {"model": ErrorReply, "description": MEANINGS[status]} for status in statuses}


def add_score_body(app: FastAPI) -> None:
    """Put the schema of the body among the components of `app`'s description."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        described = original()
        schemas = described.setdefault("components", {}).setdefault("schemas", {})
        if "ScoreBody" not in schemas:
            body = ScoreBody.model_json_schema(ref_template=REFERENCE + "{model}")
            schemas.update(body.pop("$defs"))
            schemas["ScoreBody"] = body
        return described

    app.openapi = openapi
