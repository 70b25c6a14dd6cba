"""How the service says no: one JSON form for every error, with a message that tells what to do."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

RETRY_SECONDS = 1
"""After how long a client that is told to come again should come again."""
LONGEST_MESSAGE = 1000


class Refused(Exception):
    """A request that is answered by an error.

    Args:
        status: The HTTP status.
        code: A word for programs.
        message: A sentence for people: what must be, what came, what to try.
        headers: Further headers of the reply.
    """

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}


class Reply(Response):
    """JSON in ASCII, so that every text can be sent back, also half a surrogate pair."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The bytes of `content`; a number that is not finite is a mistake of ours and raises."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def error_reply(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Reply:
    """`{"error": {"code": ..., "message": ...}}`."""
    if len(message) > LONGEST_MESSAGE:
        message = f"{message[:LONGEST_MESSAGE]}..."
    return Reply({"error": {"code": code, "message": message}}, status, headers)


def reply_in_one_form(app: FastAPI) -> None:
    """Tell every error of `app` in the one JSON form: ours, the framework's, and what nobody foresaw."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Reply:
        return error_reply(error.status, error.code, error.message, error.headers)

    @app.exception_handler(HTTPException)
    async def unrouted(request: Request, error: HTTPException) -> Reply:
        code = {404: "unknown_route", 405: "unknown_method"}.get(error.status_code, "refused")
        message = f"{error.detail}; GET /openapi.json tells what there is."
        return error_reply(error.status_code, code, message, dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Reply:
        return error_reply(422, "invalid", "The request must fit GET /openapi.json.")

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Reply:
        # The server logs the traceback; it is nobody else's business.
        return error_reply(500, "mistake", "The service made a mistake; its log tells more.")
