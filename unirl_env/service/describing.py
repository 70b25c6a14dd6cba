"""The OpenAPI description: what FastAPI cannot see, because the body of `/score` is read by hand."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from unirl_env.rewards.wire import TENSORS
from unirl_env.service.reading import JSON
from unirl_env.service.schema import ErrorReply, ScoreBody

__all__ = ["SCORE_BODY", "add_score_body", "errors"]

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
            JSON: {"schema": {"$ref": f"{REFERENCE}ScoreBody"}},
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
